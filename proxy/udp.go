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

// ready is called by the loop.
func (p *UDP) ready(events uint32) {
	if events&unix.EPOLLOUT != 0 && p.waiting.resume(p.loop, p.fd) {
		p.loop.rewatch(p.fd, p.events())
	}
	if events&^unix.EPOLLOUT != 0 {
		p.read()
	}
}

// events are those that the loop is to wait for.
func (p *UDP) events() uint32 {
	if p.waiting.some() {
		return unix.EPOLLIN | unix.EPOLLOUT
	}
	return unix.EPOLLIN
}

// read sends on what waits at the frontend, at most a batch.
func (p *UDP) read() {
	l := p.loop
	n, err := p.receive(l.batch, p.fd)
	if err != nil {
		if err = ignore(err); err != nil {
			p.pause(err)
		}
		return
	}
	p.wait = 0
	for slot := range n {
		client, ok := l.batch.names[slot].addrPort()
		if !ok {
			continue
		}
		info := parsePktinfo(l.batch.oob(slot), p.local.Addr())
		key := newFlowKey(client, info)
		f := p.flows.lookup(key)
		if f == nil {
			if f = p.open(key, info, l.batch.sender(slot)); f == nil {
				continue
			}
		}
		if f.requests.add(l.batch, slot) {
			l.asked = append(l.asked, f)
			p.flows.touch(f, l.now)
		}
	}
	l.sendRequests()
}

// pause leaves the frontend alone for a while after an error of reading, which
// would only be met again.
func (p *UDP) pause(err error) {
	if p.failing.now() {
		p.log.Warn("read datagrams", "frontend", p.local, "err", err)
	}
	p.loop.unwatch(p.fd)
	p.retry = p.loop.now.Add(p.wait.next())
	p.schedule()
}

// open makes a flow, or nil if its datagram is to be dropped. The flow is in
// the table only once nothing can fail any more.
func (p *UDP) open(key flowKey, info pktinfo, client address) *flow {
	local := netip.AddrPortFrom(key.local, p.local.Port())
	to, ok := p.backend(local)
	if !ok {
		p.log.Debug("drop datagram without backend", "frontend", local, "client", key.client)
		return nil
	}
	client.source = info.source(key.ifindex)
	f, err := p.newFlow(key, client, to)
	if idlest := p.flows.idlest(); errors.Is(err, unix.EMFILE) && idlest != nil {
		p.endFlow(idlest)
		f, err = p.newFlow(key, client, to)
	}
	if err != nil {
		if p.failing.now() {
			p.log.Warn("open flow", "frontend", local, "client", key.client, "backend", to, "err", err)
		}
		return nil
	}
	if p.flows.len() >= p.maxFlows {
		p.endFlow(p.flows.idlest())
	}
	p.flows.insert(f, p.loop.now)
	if p.place == 0 {
		p.schedule()
	}
	return f
}

// tick does what is due: ends flows that were idle for too long, and reads again
// after an error.
func (p *UDP) tick() {
	l := p.loop
	for f := p.flows.expired(p.idle, l.now); f != nil; f = p.flows.expired(p.idle, l.now) {
		p.endFlow(f)
	}
	if l.flows == 0 {
		l.batch.forget()
	}
	if !p.retry.IsZero() && !p.retry.After(l.now) {
		p.retry = time.Time{}
		if err := l.watch(p.fd, p, p.events()); err != nil {
			p.retry = l.now.Add(p.wait.next())
		}
	}
	p.schedule()
}

// schedule says when tick is to be called. Datagrams do not move that time, so
// it may be too early.
func (p *UDP) schedule() {
	due := p.retry
	if f := p.flows.idlest(); f != nil {
		if end := f.seen.Add(p.idle); due.IsZero() || end.Before(due) {
			due = end
		}
	}
	p.loop.due.set(p, due)
}
