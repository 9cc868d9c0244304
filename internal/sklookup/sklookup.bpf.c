//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

// Programs that hold host ports without a socket for each: bind(2) of others is
// refused, and what arrives is dropped, left alone, or led to one socket for all.
// See doc.go.

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#define AF_INET 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define EADDRINUSE 98

#define ALLOW 1
#define REFUSE 0

// Of the kernel's structs, what is read here; the loader finds where it is.
struct sock_common {
	unsigned char skc_ipv6only : 1;
} __attribute__((preserve_access_index));

// Kernel and Go agree on the layouts: no padding. Addresses and ports are in
// network byte order.

struct address {
	__u32 w[4];
};

struct port_key {
	__u32 prefixlen;
	struct address host; // IPv4 as ::ffff:a.b.c.d; ::ffff:0.0.0.0 and :: for all of a family
	__u16 proto;
	__be16 port;
};

#define KEY_BITS (8 * (sizeof(struct port_key) - sizeof(__u32)))

// What is done with what arrives at a port.
enum state {
	STATE_DROP = 1,
	STATE_PASS = 2,   // the look-up goes on, as if nothing were here
	STATE_STEER = 3,  // to the socket for all
	STATE_STEER6 = 4, // so, but only what netfilter cannot translate: ::1 and link-local
};

// The network namespace whose sockets are meant.
volatile const __u64 netns;

// The process that may bind what is held, as this kernel numbers it whatever
// namespace it is in: whoever binds the socket of this cookie.
volatile __u64 teacher;
volatile __u32 owner;

// A range of ports is a few prefixes. Under a host of all ones, which no socket
// can have, are the ports that are held on any host of its family.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, __u8);
} ports SEC(".maps");

// One of each protocol and family, see socket_index.
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

static __always_inline __u32 socket_index(__u32 proto, bool is4)
{
	return (proto == IPPROTO_UDP ? 2 : 0) + (is4 ? 0 : 1);
}

static __always_inline void set4(struct address *a, __u32 ip4)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = ip4;
}

static __always_inline void set6(struct address *a, __u32 all)
{
	a->w[0] = all;
	a->w[1] = all;
	a->w[2] = all;
	a->w[3] = all;
}

static __always_inline bool is_mapped(const struct address *a)
{
	return !a->w[0] && !a->w[1] && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_any6(const struct address *a)
{
	return !a->w[0] && !a->w[1] && !a->w[2] && !a->w[3];
}

// Whether netfilter cannot translate an address: ::1, fe80::/10.
static __always_inline bool is_local6(const struct address *a)
{
	if (!a->w[0] && !a->w[1] && !a->w[2] && a->w[3] == bpf_htonl(1))
		return true;
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

SEC("sk_lookup")
int lookup(struct bpf_sk_lookup *ctx)
{
	bool is4 = ctx->family == AF_INET;
	struct port_key key = {.prefixlen = KEY_BITS, .proto = ctx->protocol, .port = bpf_htons(ctx->local_port)};
	// Both, before any branch: the verifier takes no pointer into the context
	// that depends on one. The other family's is zero.
	__u32 ip4 = ctx->local_ip4;
	struct address local = {{ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2], ctx->local_ip6[3]}};
	struct bpf_sock *sk;
	__u32 index;
	__u8 *state;
	long err;

	if (is4)
		set4(&local, ip4);
	key.host = local;
	state = bpf_map_lookup_elem(&ports, &key);
	if (!state) {
		if (is4)
			set4(&key.host, 0);
		else
			set6(&key.host, 0);
		state = bpf_map_lookup_elem(&ports, &key);
	}
	if (!state)
		return SK_PASS;
	switch (*state) {
	case STATE_PASS:
		return SK_PASS;
	case STATE_STEER6:
		if (!is_local6(&local))
			return SK_PASS;
		break;
	case STATE_STEER:
		break;
	default:
		return SK_DROP;
	}
	index = socket_index(ctx->protocol, is4);
	sk = bpf_map_lookup_elem(&sockets, &index);
	if (!sk)
		return SK_DROP;
	err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return err ? SK_DROP : SK_PASS;
}

static __always_inline bool held(struct port_key *key)
{
	return bpf_map_lookup_elem(&ports, key) != 0;
}

// Whether a port is held on any IPv4 address, or on this one. An address of 0 is
// all of them.
static __always_inline bool held4(struct port_key *key, __u32 ip4)
{
	set4(&key->host, ip4 ? ip4 : 0xffffffff);
	if (held(key))
		return true;
	if (!ip4)
		return false;
	set4(&key->host, 0);
	return held(key);
}

static __always_inline bool held6(struct port_key *key, const struct address *ip6)
{
	if (is_any6(ip6)) {
		set6(&key->host, 0xffffffff);
		return held(key);
	}
	key->host = *ip6;
	if (held(key))
		return true;
	set6(&key->host, 0);
	return held(key);
}

// Whether a bind is none of our business: of another namespace, of a protocol or
// a port that cannot be held, or our own.
static __always_inline bool not_meant(struct bpf_sock_addr *ctx)
{
	if (bpf_get_netns_cookie(ctx) != netns)
		return true;
	if (teacher && bpf_get_socket_cookie(ctx) == teacher)
		owner = bpf_get_current_pid_tgid() >> 32;
	if (!ctx->user_port || (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP))
		return true;
	return owner && owner == (__u32)(bpf_get_current_pid_tgid() >> 32);
}

static __always_inline int refuse_if(bool is_held)
{
	if (!is_held)
		return ALLOW;
	bpf_set_retval(-EADDRINUSE);
	return REFUSE;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	struct port_key key = {.prefixlen = KEY_BITS};

	if (not_meant(ctx))
		return ALLOW;
	key.proto = ctx->protocol;
	key.port = ctx->user_port;
	return refuse_if(held4(&key, ctx->user_ip4));
}

// Whether a socket takes no IPv4. What cannot be told is taken to.
static __always_inline bool only6(struct bpf_sock *sk, __u32 proto)
{
	struct sock_common *c;

	if (!sk)
		return false;
	if (proto == IPPROTO_TCP)
		c = (void *)bpf_skc_to_tcp6_sock(sk);
	else
		c = (void *)bpf_skc_to_udp6_sock(sk);
	return c && BPF_CORE_READ_BITFIELD(c, skc_ipv6only);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	struct port_key key = {.prefixlen = KEY_BITS};
	struct address ip6;

	if (not_meant(ctx))
		return ALLOW;
	key.proto = ctx->protocol;
	key.port = ctx->user_port;
	ip6.w[0] = ctx->user_ip6[0];
	ip6.w[1] = ctx->user_ip6[1];
	ip6.w[2] = ctx->user_ip6[2];
	ip6.w[3] = ctx->user_ip6[3];
	if (is_mapped(&ip6))
		return refuse_if(held4(&key, ip6.w[3]));
	if (held6(&key, &ip6))
		return refuse_if(true);
	if (!is_any6(&ip6) || only6(ctx->sk, ctx->protocol))
		return ALLOW;
	return refuse_if(held4(&key, 0));
}

// GPL for bpf_skc_to_tcp6_sock and its like.
char _license[] SEC("license") = "Dual BSD/GPL";
