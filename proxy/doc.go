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
// One loop on one thread carries the connections of all ports: it copies small
// messages, one read and one write for each, and moves bulk by splice(2). The end
// of one direction is passed on alone (half-close), so that whoever closes first
// is left with the TIME_WAIT; where that is us, towards a backend, the port is
// used again before the host runs out of ports. A reset on either side is passed
// on as a reset, which leaves no TIME_WAIT. What one peer does not take stays with
// the other: of a connection that is not bulk 16 KiB a direction at most are held
// here, of one that is 1 MiB. A live connection takes two file descriptors, and
// two more for a pipe as long as a direction is bulk.
//
// # UDP
//
// A flow is one client talking to one local address. It has a socket of its
// own, connected to the backend, and is answered from the address that the
// client used. A request that cannot be sent on at once is dropped, as a router
// would; replies wait for a slow device, and the flows of that port with them.
// Boundaries and empty datagrams are kept.
//
// Another loop carries the datagrams of all ports: it reads and sends many at a
// time (recvmmsg, sendmmsg), and those of one size to the same place as one
// message that the kernel cuts apart (UDP_SEGMENT).
//
// ServeSteeredUDP serves a socket that a BPF program steers the datagrams of many
// ports to. There a flow has a second socket, at its client's side.
//
// # SCTP
//
// There is none: package net has no SCTP, and few kernels have its sockets.
// SCTP ports are carried by NAT alone.
//
// # Ownership
//
// A Proxy owns its socket and everything that comes of it; Close ends that all
// and waits. An idle socket costs no goroutine and no buffer; the loop of a
// protocol is there as long as any socket of it. Proxies that share a Files leave
// open files to one another and to the rest of the process.
package proxy
