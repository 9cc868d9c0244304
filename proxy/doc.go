// Package proxy carries published ports in user space, where the kernel's NAT
// cannot: clients of [::1], clients of one address family and a container of
// the other, IPv4 broadcast to a published UDP port, and link-local IPv6.
//
// ServeTCP and ServeUDP each serve one socket, which somebody else has opened,
// bound and (TCP) set listening. Both return a Proxy. A BackendFunc says where
// what arrives goes, so that one socket can serve several ports, and a port can
// move to another container while its socket stays.
//
// Sockets may be of either family or of both: "tcp4", "tcp6" and "tcp" of
// package net are served alike, and so are "udp4", "udp6" and "udp". The
// backend's family is independent of the client's.
//
// # TCP
//
// A connection is two copies, by splice(2) where the kernel can. The end of one
// direction is passed on alone (half-close); a reset on either side is passed
// on as a reset, which also leaves no TIME_WAIT behind. A live connection takes
// six file descriptors: two sockets, and a pipe for each direction.
//
// # UDP
//
// A flow is one client talking to one local address. It has a socket of its
// own, connected to the backend, and is answered from the address that the
// client used. A request that cannot be sent on at once is dropped, as a router
// would; replies wait for a slow device, and the flows of that port with them.
// Boundaries and empty datagrams are kept.
//
// One loop on one thread carries the datagrams of all ports: it reads and sends
// many at a time (recvmmsg, sendmmsg), and those of one size to the same place as
// one message that the kernel cuts apart (UDP_SEGMENT).
//
// # SCTP
//
// There is none: package net has no SCTP, and few kernels have its sockets.
// SCTP ports are carried by NAT alone.
//
// # Ownership
//
// A Proxy owns its socket and every goroutine and connection that comes of it;
// Close ends them all and waits. An idle TCP socket costs one goroutine, an idle
// UDP socket none, and neither a buffer; the loop of all UDP sockets is there as
// long as any of them. Proxies that share a Files leave open files to one another
// and to the rest of the process.
package proxy
