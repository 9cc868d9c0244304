//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

// Programs for the root of a cgroup v2 hierarchy. They give the host's own IPv6
// sockets the container's address for the published port that they ask for, and
// have the sockets go on seeing what they asked for. See doc.go.

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define TCP_ESTABLISHED 1 // of UDP: connected

#define ALLOW 1

// Of the kernel's structs, what is read here; the loader finds where it is.
struct sock_common {
	unsigned char skc_ipv6only : 1;
} __attribute__((preserve_access_index));

struct tcp_sock {
	bool is_mptcp;
} __attribute__((preserve_access_index));

// All addresses and ports are in network byte order, but for those of struct
// range. Kernel and Go agree on the layouts: no padding.

struct address {
	__u32 w[4];
};

struct range_key {
	__u32 prefixlen;
	struct address host; // :: for all of this host's
	__u16 proto;
	__be16 port;
};

struct range {
	struct address backend; // the container's; IPv4 as ::ffff:a.b.c.d
	struct address via;     // for connected UDP sockets; :: is none
	__u16 host_first;       // host byte order, and so is the next
	__u16 first;
};

// What a socket dialled, and what it got.
struct flow {
	struct address dialled;
	struct address backend;
	__be16 dialled_port;
	__be16 backend_port;
};

struct answer_key {
	__u64 cookie; // of the socket
	struct address backend;
	__be16 port;
	__u16 zero[3];
};

struct answer {
	struct address dialled;
	__be16 port;
	__u16 zero;
};

// The network namespace whose sockets are meant: containers have a ::1 of
// their own.
volatile const __u64 netns;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u8);
} locals SEC(".maps");

// A range of ports is a few prefixes.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct range_key);
	__type(value, struct range);
} ranges SEC(".maps");

// The last flow of a socket. It ends with the socket.
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct flow);
} flows SEC(".maps");

// The flows of UDP sockets before the last.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384); // all of it is allocated at once
	__type(key, struct answer_key);
	__type(value, struct answer);
} answers SEC(".maps");

static __always_inline bool same(const struct address *a, const struct address *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline bool is_any(const struct address *a)
{
	return !a->w[0] && !a->w[1] && !a->w[2] && !a->w[3];
}

static __always_inline bool is_loopback(const struct address *a)
{
	return !a->w[0] && !a->w[1] && !a->w[2] && a->w[3] == bpf_htonl(1);
}

static __always_inline bool is_mapped(const struct address *a)
{
	return !a->w[0] && !a->w[1] && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline void user_address(const struct bpf_sock_addr *ctx, struct address *a)
{
	a->w[0] = ctx->user_ip6[0];
	a->w[1] = ctx->user_ip6[1];
	a->w[2] = ctx->user_ip6[2];
	a->w[3] = ctx->user_ip6[3];
}

static __always_inline void set_user(struct bpf_sock_addr *ctx, const struct address *a, __be16 port)
{
	ctx->user_ip6[0] = a->w[0];
	ctx->user_ip6[1] = a->w[1];
	ctx->user_ip6[2] = a->w[2];
	ctx->user_ip6[3] = a->w[3];
	ctx->user_port = port;
}

// Whether a socket can have a backend and keep up appearances. One that takes no
// IPv4 cannot be given an IPv4 backend. A subflow of multipath TCP (Linux 5.6) is
// not the socket that the program sees, and asks for its peer.
static __always_inline bool suits(struct bpf_sock *sk, __u32 proto, const struct address *backend)
{
	struct sock_common *c;

	if (proto == IPPROTO_TCP) {
		struct tcp_sock *tp = (void *)bpf_skc_to_tcp6_sock(sk);

		if (!tp || (bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp))
			return false;
		c = (void *)tp;
	} else {
		c = (void *)bpf_skc_to_udp6_sock(sk);
		if (!c)
			return false;
	}
	return !is_mapped(backend) || !BPF_CORE_READ_BITFIELD(c, skc_ipv6only);
}

// Whether the source address fits a backend: none yet, so that the kernel
// chooses by the route to the backend, or one that it has chosen so before. One
// that the program asked for is not to be second-guessed, and ::1 cannot leave
// the host.
static __always_inline bool source_fits(const struct address *src, const struct address *backend, bool connected)
{
	if (is_any(src))
		return true;
	if (!connected || is_loopback(src))
		return false;
	return is_mapped(src) == is_mapped(backend);
}

// find fills in the flow of what a socket of this namespace dials: this host's
// own address and a published port.
//
// What is connected stays with what it was given. That is right for TCP. A UDP
// socket may be kept for years while the port moves from container to container,
// so it is given an address at which packets are translated (netfilter), where
// that carries the port.
static __always_inline bool find(struct bpf_sock_addr *ctx, __u32 proto, bool connected, struct flow *f)
{
	struct range_key key = {};
	struct range *r;

	user_address(ctx, &f->dialled);
	f->dialled_port = ctx->user_port;
	if (is_any(&f->dialled)) // means this host, to connect and sendto
		f->dialled.w[3] = bpf_htonl(1);
	if (!bpf_map_lookup_elem(&locals, &f->dialled))
		return false;

	key.prefixlen = 8 * (sizeof(key) - sizeof(key.prefixlen));
	key.proto = proto;
	key.port = f->dialled_port;
	r = bpf_map_lookup_elem(&ranges, &key);
	if (!r) {
		key.host = f->dialled;
		r = bpf_map_lookup_elem(&ranges, &key);
		if (!r)
			return false;
	}
	if (proto == IPPROTO_UDP && connected) {
		if (is_any(&r->via))
			return false;
		// Netfilter carries this family, so what was dialled does already; ::1
		// alone it cannot.
		if (!is_mapped(&r->via) && !is_loopback(&f->dialled))
			return false;
		f->backend = r->via;
		f->backend_port = f->dialled_port;
		return true;
	}
	f->backend = r->backend;
	f->backend_port = bpf_htons(r->first + (bpf_ntohs(f->dialled_port) - r->host_first));
	return true;
}

static __always_inline void remember(struct bpf_sock_addr *ctx, const struct flow *f)
{
	struct answer_key key = {};
	struct answer value = {};

	key.cookie = bpf_get_socket_cookie(ctx);
	key.backend = f->backend;
	key.port = f->backend_port;
	value.dialled = f->dialled;
	value.port = f->dialled_port;
	bpf_map_update_elem(&answers, &key, &value, BPF_ANY);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u32 proto = ctx->protocol;
	struct flow f = {};
	struct address src;
	struct flow *had;

	if (!sk || bpf_get_netns_cookie(ctx) != netns)
		return ALLOW;
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return ALLOW;
	if (!find(ctx, proto, true, &f))
		goto other;

	src.w[0] = sk->src_ip6[0];
	src.w[1] = sk->src_ip6[1];
	src.w[2] = sk->src_ip6[2];
	src.w[3] = sk->src_ip6[3];
	if (sk->bound_dev_if || !source_fits(&src, &f.backend, sk->state == TCP_ESTABLISHED))
		goto other;
	if (!suits(sk, proto, &f.backend))
		goto other;

	had = bpf_sk_storage_get(&flows, sk, &f, BPF_SK_STORAGE_GET_F_CREATE);
	if (!had)
		return ALLOW;
	*had = f;
	set_user(ctx, &f.backend, f.backend_port);
	return ALLOW;
other:
	// Whatever it was connected to before, this is what it dials now.
	bpf_sk_storage_delete(&flows, sk);
	return ALLOW;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct flow f = {};
	struct address src;
	struct flow *had;
	bool connected;

	if (!sk || bpf_get_netns_cookie(ctx) != netns)
		return ALLOW;
	// A connected socket that names an address, too, hears its peer alone.
	connected = sk->state == TCP_ESTABLISHED;
	if (!find(ctx, IPPROTO_UDP, connected, &f))
		return ALLOW;
	// The kernel refuses an IPv4 address from here (ENOTSUPP).
	if (is_mapped(&f.backend))
		return ALLOW;
	// The socket's, or that of this datagram (IPV6_PKTINFO).
	src.w[0] = ctx->msg_src_ip6[0];
	src.w[1] = ctx->msg_src_ip6[1];
	src.w[2] = ctx->msg_src_ip6[2];
	src.w[3] = ctx->msg_src_ip6[3];
	if (sk->bound_dev_if || !source_fits(&src, &f.backend, connected))
		return ALLOW;

	had = bpf_sk_storage_get(&flows, sk, &f, BPF_SK_STORAGE_GET_F_CREATE);
	if (!had)
		return ALLOW;
	if (had->dialled_port != f.dialled_port || had->backend_port != f.backend_port ||
	    !same(&had->dialled, &f.dialled) || !same(&had->backend, &f.backend)) {
		// Answers to what was sent before may be on their way.
		struct flow before = *had;

		remember(ctx, &before);
		*had = f;
	}
	set_user(ctx, &f.backend, f.backend_port);
	return ALLOW;
}

// restore puts what was dialled in place of a backend's address. Sockets that
// never dialled a published port have no flow.
static __always_inline int restore(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct answer_key key = {};
	struct answer *a;
	struct flow *f;

	if (!sk)
		return ALLOW;
	f = bpf_sk_storage_get(&flows, sk, 0, 0);
	if (!f)
		return ALLOW;
	user_address(ctx, &key.backend);
	key.port = ctx->user_port;
	if (f->backend_port == key.port && same(&f->backend, &key.backend)) {
		set_user(ctx, &f->dialled, f->dialled_port);
		return ALLOW;
	}
	key.cookie = bpf_get_socket_cookie(ctx);
	a = bpf_map_lookup_elem(&answers, &key);
	if (a)
		set_user(ctx, &a->dialled, a->port);
	return ALLOW;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	return restore(ctx);
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	return restore(ctx);
}

// What the kernel asks for of programs that read its structs.
char _license[] SEC("license") = "Dual BSD/GPL";
