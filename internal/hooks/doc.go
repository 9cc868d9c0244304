// Package hooks gives the host's own IPv6 clients of published ports the speed
// of the kernel: [::1], which netfilter cannot translate, and IPv6 clients of a
// container that has IPv4 alone.
//
// Hooks are BPF programs at the root of a cgroup v2 hierarchy, which see what
// every process of the host asks of its sockets. connect6 and sendmsg6 replace
// this host's address and a published port by the container's address and port,
// before the kernel looks for a route; recvmsg6 and getpeername6 put back what
// was dialled. No packet is touched, and nothing is copied. The programs are in
// hooks.bpf.c; `go generate` compiles them, and the result is committed.
//
// # What is left alone
//
// Sockets of other network namespaces: each container has a ::1 of its own.
// Destinations that are not an address of this host, link-local ones, and ports
// that are not published. Of what is left, every case that would break:
//
//   - a source address that the program has chosen, by bind(2) or IPV6_PKTINFO,
//     and a socket bound to an interface: ::1 cannot leave the host;
//   - sendto(2) on an unconnected UDP socket, where the container has IPv4 alone:
//     the kernel refuses an IPv4 address there;
//   - an IPV6_V6ONLY socket, where the container has IPv4 alone;
//   - multipath TCP, whose getpeername(2) asks another socket.
//
// All of this reaches whoever listens on the port, the userland proxy, as it
// would without hooks. So a caller keeps that running.
//
// # Connected UDP sockets
//
// What is connected stays with the address that it was given. A TCP connection
// ends with its container, but a UDP socket may be kept for years (a log, a
// metric) while the port moves from container to container. So it is not given
// the container's address but another one of the host, at which netfilter
// translates the port, and conntrack entries are deleted when that moves: one of
// the host's other IPv6 addresses in place of ::1, 127.0.0.1 where the container
// has IPv4 alone. Where netfilter does not carry the port, it is left alone.
//
// # What a client can tell
//
// The container sees the host's address in its network, chosen by route, never
// ::1. getsockname(2) shows the same, or 127.0.0.1. A UDP socket that is
// connected to a published port of an IPv4-only container is one of IPv4 from
// then on: before it is connected to another IPv6 address, or sends to one, it
// has to be disconnected (AF_UNSPEC).
//
// # Ownership and end
//
// The programs are attached by bpf_link(2) file descriptors that are pinned
// nowhere, so they end with Close, and with the process however that ends.
// Connections that were made go on. One goroutine keeps the host's addresses up
// to date, and Close ends it.
package hooks
