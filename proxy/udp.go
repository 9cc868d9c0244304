package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DefaultIdle is longer than the keepalive of common UDP protocols (QUIC
	// and WireGuard: 25 to 30 s) and shorter than the 120 s that conntrack
	// keeps a stream.
	DefaultIdle = 90 * time.Second
	// DefaultMaxFlows bounds what one port can take from the others. A flow is
	// a file descriptor, and a managed plugin may have 20,000 for all ports
	// together; it is also about 3 KiB of memory. Clients of one request each,
	// as of a DNS server, may be far more: their flows are the idlest, and
	// nobody misses them.
	DefaultMaxFlows = 1024
)

// UDPConfig has the settings of a UDP proxy. The zero value is usable.
type UDPConfig struct {
	// Idle ends a flow after that long with no datagram in either direction;
	// 0 means DefaultIdle.
	Idle time.Duration
	// MaxFlows is how many flows there may be at a time; one more ends the
	// idlest. 0 means DefaultMaxFlows.
	MaxFlows int
	// Files bounds the flows of all ports together: one more is not opened. nil
	// means no bound.
	Files *Files
	// Log gets a line for each refused datagram (debug), and one a second at
	// most while flows or reads fail (warning). nil is silent.
	Log *slog.Logger
}

// UDP is the proxy of one UDP socket. Its state belongs to the hub.
type UDP struct {
	addr     net.Addr
	local    netip.AddrPort // addr
	backend  BackendFunc
	idle     time.Duration
	maxFlows int
	files    *Files
	log      *slog.Logger
	shut     func() error // shutdown, once

	hub    *hub
	loop   *loop // nil before join
	fd     int   // -1 once closed
	conn   *net.UDPConn
	flows  flowTable
	closed bool

	answers chain // in the loop's batch
	waiting waiting

	due   time.Time // of deadlines, as is place
	place int

	receive func(b *batch, fd int) (int, error)
	failing sparsely
	wait    backoff
	retry   time.Time   // when to read again after an error; usually zero
	rejoin  *time.Timer // after an error of join
}

// ServeUDP serves the datagrams of conn, which it owns from here on, until
// Close. It asks the kernel for each datagram's destination, so a filter that
// keeps datagrams away until the port is ready should go only after it returns.
//
// The socket is taken out of conn, which is closed; Control leads to it.
func ServeUDP(conn *net.UDPConn, backend BackendFunc, cfg UDPConfig) *UDP {
	p := newUDP(conn, backend, cfg)
	p.start()
	return p
}

func newUDP(conn *net.UDPConn, backend BackendFunc, cfg UDPConfig) *UDP {
	if cfg.Idle <= 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.MaxFlows <= 0 {
		cfg.MaxFlows = DefaultMaxFlows
	}
	p := &UDP{
		addr:     conn.LocalAddr(),
		local:    plain(addrPort(conn.LocalAddr())),
		backend:  backend,
		idle:     cfg.Idle,
		maxFlows: cfg.MaxFlows,
		files:    cfg.Files,
		log:      orSilent(cfg.Log),
		hub:      &udpHub,
		receive:  (*batch).receiveRequests,
	}
	p.takeSocket(conn)
	p.shut = sync.OnceValue(p.shutdown)
	return p
}

// takeSocket has the scheduler's poller, where package net has every socket, not
// be woken for each datagram as well.
func (p *UDP) takeSocket(conn *net.UDPConn) {
	old := fdOf(conn)
	p.fd = old
	if old < 0 {
		return // closed: there is nothing to serve
	}
	fd, err := unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil { // no file left: it works so too
		p.conn = conn
		return
	}
	_ = conn.Close()
	p.fd = fd
}

func (p *UDP) start() {
	p.hub.mu.Lock()
	defer p.hub.mu.Unlock()
	if p.fd < 0 {
		return
	}
	if err := enablePktinfo(p.fd); err != nil {
		// Replies leave from the address that the kernel prefers, which is
		// right wherever there is only one.
		p.log.Warn("ask for destination addresses", "frontend", p.local, "err", err)
	}
	enlargeBuffers(p.fd)
	p.join()
}

// join enters the loop, or tries again later: what is missing is memory or files.
func (p *UDP) join() {
	l, err := p.hub.enter()
	if err == nil {
		p.loop = l
		if err = l.watch(p.fd, p, unix.EPOLLIN); err == nil {
			p.wait = 0
			return
		}
		p.loop = nil
		p.hub.leave() // nothing to wait for: the loop has done nothing for p
	}
	if p.failing.now() {
		p.log.Warn("serve datagrams", "frontend", p.local, "err", err)
	}
	p.rejoin = time.AfterFunc(p.wait.next(), func() {
		p.hub.mu.Lock()
		defer p.hub.mu.Unlock()
		if !p.closed {
			p.join()
		}
	})
}

// Addr is the socket's address.
func (p *UDP) Addr() net.Addr { return p.addr }

// Control calls f with the socket, which f must not close. It is for options and
// filters.
func (p *UDP) Control(f func(fd uintptr)) error {
	p.hub.mu.Lock()
	defer p.hub.mu.Unlock()
	if p.fd < 0 {
		return net.ErrClosed
	}
	f(uintptr(p.fd))
	return nil
}

// Reset ends every flow. The next datagram of each client is looked up again.
func (p *UDP) Reset() {
	p.hub.mu.Lock()
	defer p.hub.mu.Unlock()
	p.endFlows()
}

func (p *UDP) endFlows() {
	for f := p.flows.idlest(); f != nil; f = p.flows.idlest() {
		p.endFlow(f)
	}
}

func (p *UDP) endFlow(f *flow) {
	p.flows.remove(f)
	f.end()
}

// Close closes the socket, ends every flow, and returns when nothing of them is
// under way; the last proxy's Close also ends the loop. The error is that of
// closing the socket; closing again returns it again.
func (p *UDP) Close() error { return p.shut() }

func (p *UDP) shutdown() error {
	p.hub.mu.Lock()
	p.closed = true
	if p.rejoin != nil {
		p.rejoin.Stop()
	}
	p.endFlows()
	var ended <-chan struct{}
	if l := p.loop; l != nil {
		l.due.set(p, time.Time{})
		l.unwatch(p.fd)
		ended = p.hub.leave()
	}
	err := p.closeSocket()
	p.hub.mu.Unlock()
	if ended != nil {
		<-ended
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close udp proxy %s: %w", p.Addr(), err)
	}
	return nil
}

func (p *UDP) closeSocket() error {
	fd := p.fd
	p.fd = -1
	switch {
	case p.conn != nil:
		return p.conn.Close()
	case fd >= 0:
		return unix.Close(fd)
	}
	return nil
}
