// Package portmap publishes container ports on the host.
//
// A Publisher does the whole of it for one endpoint at a time. It asks an
// Allocator (one per protocol) for host ports, which are reserved by sockets
// that a Reserver opens, or as a long range by Ranges; has a Mapper (nftables or
// iptables) send what arrives there to the container; deletes the UDP conntrack
// entries that point elsewhere; and has package proxy serve what the kernel
// cannot carry. Hooks, where the host has them, take the host's own IPv6 clients
// past the proxy.
//
// # Ownership
//
// All rules live in the table "portolan" (iptables: chains "PORTOLAN-*").
// Nothing else on the host is changed, but for the list in the README. A
// sandbox, not an endpoint, owns host ports: they outlive a move of the
// gateway from one of its endpoints to another.
//
// # Order
//
// Reserve, write the store, map, delete stale conntrack entries, serve, steer
// the hooks; undo runs backwards. Everything here is synchronous; the only
// goroutines are those of package proxy, which Unpublish and Close end.
package portmap
