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

// DefaultDialTimeout is long enough for two lost SYNs (1 s, then 2 s more), and
// short enough that a client hears of a dead backend before it gives up itself.
const DefaultDialTimeout = 10 * time.Second

// acceptsAtOnce leaves time for the other sockets: one connection takes about as
// long as ten round trips.
const acceptsAtOnce = 16

// TCPConfig has the settings of a TCP proxy. The zero value is usable.
type TCPConfig struct {
	// DialTimeout is how long a backend may take to accept a connection;
	// 0 means DefaultDialTimeout.
	DialTimeout time.Duration
	// MaxConns is how many connections there may be at a time: one more is reset.
	// 0 means no bound but Files.
	MaxConns int
	// Counters, if not nil, has the numbers of a proxy that serves several ports
	// counted apart; Samples then has only those of the socket.
	Counters CountersFunc
	// Files bounds the connections: one more is reset. nil means no bound.
	Files *Files
	// Log gets a line for each connection that is refused (debug), and one a
	// second at most while connections cannot be taken (warning). nil is silent.
	Log *slog.Logger
}

// TCP is the proxy of one listening socket. Its state belongs to the hub.
type TCP struct {
	frontend
	timer       // of a rest
	backend     BackendFunc
	dialTimeout time.Duration
	maxConns    int
	files       *Files
	tally       tally
	shut        func() error // shutdown, once

	loop   *tcpLoop // nil before join
	conns  map[*tcpConn]struct{}
	accept func(fd int) (int, error)
}

// ServeTCP serves the connections of ln, which it owns from here on, until
// Close. Keepalive is on, on both sides, with the intervals of package net.
//
// The socket is taken out of ln, which is closed; Control leads to it. It may
// receive the connections of several ports, which a BPF program of type
// sk_lookup steers to it: backend is asked with the address that a client used.
func ServeTCP(ln *net.TCPListener, backend BackendFunc, cfg TCPConfig) *TCP {
	p := newTCP(ln, backend, cfg)
	p.start()
	return p
}

func newTCP(ln *net.TCPListener, backend BackendFunc, cfg TCPConfig) *TCP {
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = DefaultDialTimeout
	}
	p := &TCP{
		frontend:    newFrontend(&tcpHub.mu, ln, ln.Addr(), cfg.Log),
		backend:     backend,
		dialTimeout: cfg.DialTimeout,
		maxConns:    cfg.MaxConns,
		files:       cfg.Files,
		tally:       tally{of: cfg.Counters},
		conns:       make(map[*tcpConn]struct{}),
		accept:      accept4,
	}
	p.shut = sync.OnceValue(p.shutdown)
	return p
}

func (p *TCP) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return
	}
	tune(p.fd)
	p.join(func() (err error) {
		p.loop, err = tcpHub.enter(p.fd, p)
		return err
	})
}

// Reset resets every connection, on both sides, and goes on accepting.
func (p *TCP) Reset() {
	p.ResetWhere(func(netip.AddrPort) bool { return true })
}

// ResetWhere implements Proxy.
func (p *TCP) ResetWhere(in func(netip.AddrPort) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if in(c.local) {
			c.reset()
		}
	}
}

// Close stops listening, resets every connection on both sides, and returns
// when nothing of them is under way; the last proxy's Close also ends the loop.
// The error is that of closing the socket; closing again returns it again.
func (p *TCP) Close() error { return p.shut() }

func (p *TCP) shutdown() error {
	p.mu.Lock()
	var ended <-chan struct{}
	if l := p.loop; l != nil {
		l.due.set(p, time.Time{})
		if p.fd >= 0 { // not drained
			l.unwatch(p.fd)
		}
		for c := range p.conns {
			c.reset()
		}
		ended = tcpHub.leave()
	}
	err := p.close()
	p.mu.Unlock()
	if ended != nil {
		<-ended
	}
	if err != nil {
		return fmt.Errorf("close tcp proxy %s: %w", p.Addr(), err)
	}
	return nil
}

// Samples implements Counted.
func (p *TCP) Samples() []Sample {
	return p.samplesOf(&p.tally, Sample{Name: "portolan_proxy_listener_drops_total"})
}

// Drain takes the connections that wait, and then stops listening: new ones are
// refused, and those under way go on until they end, or Close. Draining again
// does nothing.
func (p *TCP) Drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return
	}
	if l := p.loop; l != nil {
		for p.take() {
		}
		l.due.set(p, time.Time{})
		l.unwatch(p.fd)
	}
	if err := p.close(); err != nil {
		p.log.Warn("stop listening", "frontend", p.addr, "err", err)
	}
}

// Connections is how many are under way.
func (p *TCP) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// The methods below are the loop's, which has the hub's lock.

// ready has connections be taken at the end of the round: their sockets may get
// the numbers of others, of which there are still events.
func (p *TCP) ready(uint32) { p.loop.waiting = append(p.loop.waiting, p) }

// take accepts connections. It is true where there may be more.
func (p *TCP) take() bool {
	for range acceptsAtOnce {
		if p.fd < 0 { // drained since
			return false
		}
		fd, err := p.accept(p.fd)
		switch {
		case err == nil:
			p.wait = 0
			p.serve(fd)
		case errors.Is(err, unix.EAGAIN):
			return false
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		default:
			p.rest(err)
			return false
		}
	}
	return true
}

// rest leaves the listener alone for a while after an error, which would only be
// met again. A process that is out of files for a time does not lose its ports.
func (p *TCP) rest(err error) {
	if p.failing.now() {
		p.log.Warn("accept connection", "frontend", p.addr, "err", err)
	}
	p.loop.unwatch(p.fd)
	p.loop.due.set(p, p.loop.now.Add(p.wait.next()))
}

// tick ends a rest.
func (p *TCP) tick() {
	var again time.Time
	if p.loop.watch(p.fd, p, unix.EPOLLIN) != nil {
		again = p.loop.now.Add(p.wait.next())
	}
	p.loop.due.set(p, again)
}

// serve begins a connection of the client at fd.
func (p *TCP) serve(fd int) {
	name, _ := localName(fd)
	local, _ := name.addrPort()
	count := p.tally.at(local)
	if p.maxConns > 0 && len(p.conns) >= p.maxConns {
		p.turnAway(fd, count, refusedLimit, "refuse connections: the port has as many as it may")
		return
	}
	if !p.files.take(filesOfConn, othersShare(filesOfConn*len(p.conns)), fd) {
		p.turnAway(fd, count, refusedFiles, "refuse connections: too many open files, or too few left for other ports; raise the limit of this process (systemd: LimitNOFILE=)")
		return
	}
	if !tuned(fd) { // it came before the listener was
		tune(fd)
	}
	count.add(connections, 1)
	count.add(connectionsTotal, 1)
	c := &tcpConn{proxy: p, local: local, count: count}
	c.client = side{conn: c, other: &c.backend, fd: fd}
	c.backend = side{conn: c, other: &c.client, fd: -1}
	p.conns[c] = struct{}{}
	to, ok := p.backend(local)
	if !ok {
		c.refuse(errNoBackend)
		return
	}
	c.to = to
	if err := c.dial(); err != nil {
		c.refuse(err)
	}
}

// turnAway resets a client for whom there is no room.
func (p *TCP) turnAway(fd int, count *Counters, what counter, why string) {
	count.add(what, 1)
	if p.failing.now() {
		p.log.Warn(why, "frontend", p.addr, "client", peerOf(fd))
	}
	abort(fd)
}

var errNoBackend = errors.New("no backend")

// peerOf is for a line of the log.
func peerOf(fd int) netip.AddrPort {
	switch sa, _ := unix.Getpeername(fd); sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// addrPort is the address of a TCP or UDP socket of package net.
func addrPort(a net.Addr) netip.AddrPort {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}
