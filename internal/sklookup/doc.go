// Package sklookup holds host ports without a socket for each: all 65,535 of
// both protocols take a few sockets and some kilobytes, where sockets would take
// 130,000 files and 400 MiB of the kernel's memory.
//
// Three BPF programs do it, and a sysctl:
//
//   - bind4 and bind6, at the root of the cgroup v2 hierarchy, refuse bind(2) of
//     a port that is held: EADDRINUSE, as if a socket were there. They mean the
//     sockets of this network namespace; containers bind what they like. This
//     process may.
//   - net.ipv4.ip_local_reserved_ports keeps the kernel from choosing such a port
//     for bind(2) of port 0 and for connect(2). MinFree ports of
//     ip_local_port_range always stay, so that a host whose ports are all
//     published can still open connections.
//   - lookup, at the network namespace, sees each new connection and each
//     datagram that no connected socket is for, after netfilter. It drops it,
//     leaves it alone, or leads it to the one socket that a protocol and family
//     have here, which tells the destination of what it receives.
//
// What it cannot: no lookup is done for broadcast and multicast, which reach
// bound sockets only. A program that has bound a TCP port and neither listens nor
// connects is not found by Reserve. Who is bound already when the programs are
// attached keeps what he has.
//
// Links are not pinned: when the process ends, however it ends, the programs
// are gone, unless there is a Keeper that has them stay for the next process. The
// sysctl stays, so what was added to it is told to Config.Record before, and
// Unreserve takes it back.
//
// # Kernels
//
// sk_lookup and its links are of Linux 5.9, SO_NETNS_COOKIE of 5.14, and
// bpf_set_retval of 5.18 (the kernel's git log). BTF is needed to read whether a
// socket takes IPv4 (CONFIG_DEBUG_INFO_BTF).
package sklookup
