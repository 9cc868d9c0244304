package proxy

import (
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// Proxy carries the traffic of one reserved socket. Its methods are safe for
// concurrent use.
type Proxy interface {
	// Addr is the frontend's local address, after Close too.
	Addr() net.Addr
	// Reset ends every connection and flow, TCP clients being reset, and goes
	// on serving: what comes next is looked up again. It is for a port that
	// moves to another backend. When it returns, nothing arrives any more from
	// a backend of before.
	Reset()
	// ResetWhere is Reset for those whose local address, as BackendFunc is told
	// it, is one that in says. It is for a socket that serves several ports. in
	// is called while traffic waits, so it must be quick, and must not call the
	// proxy.
	ResetWhere(in func(local netip.AddrPort) bool)
	// Close ends every connection and flow (TCP by reset), and returns when
	// nothing of them is under way. Closing again is nil.
	Close() error
}

var (
	_ Proxy = (*TCP)(nil)
	_ Proxy = (*UDP)(nil)
)

// BackendFunc says where what arrives at a local address goes; false refuses it
// (TCP: reset; UDP: dropped). It is asked once for each connection or flow.
//
// local has no zone, and is an IPv4 address for an IPv4 client of a dual-stack
// socket. Of a UDP datagram it is the destination as sent: the broadcast or
// multicast address, if that is what the client used.
//
// It is called by the loops of the protocols, and all other traffic of its
// protocol waits for it. So it must be quick. Close and Reset wait for it too, so
// it must not call them, nor take a lock that their caller holds.
type BackendFunc func(local netip.AddrPort) (netip.AddrPort, bool)

// Bounds of the pause after an error that may pass (EMFILE, ENOMEM): short
// enough to be up again at once, long enough not to spin.
const (
	minPause = 5 * time.Millisecond
	maxPause = time.Second
)

// backoff paces what is tried again. The zero backoff is ready; it is set back
// to zero by success.
type backoff time.Duration

// next is minPause, then twice as long each time up to maxPause.
func (b *backoff) next() time.Duration {
	*b = min(max(*b*2, backoff(minPause)), backoff(maxPause))
	return time.Duration(*b)
}

// plain is a without what only sockets need: the IPv4 address of a v4-mapped
// one, and no zone.
func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// orSilent is l, or a logger that drops everything.
func orSilent(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
