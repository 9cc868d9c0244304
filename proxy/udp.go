package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
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
	// together; it is also about 10 KiB of memory. Clients of one request each,
	// as of a DNS server, may be far more: their flows are the idlest, and
	// nobody misses them.
	DefaultMaxFlows = 1024
)

// batch is how many datagrams are read in a row before the socket is looked at
// anew: many enough to save the poller's work, few enough that a flood cannot
// keep Close waiting.
const batch = 64

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

// UDP is the proxy of one UDP socket.
type UDP struct {
	conn    *net.UDPConn
	raw     syscall.RawConn // of conn
	local   netip.AddrPort  // of conn
	backend BackendFunc
	idle    time.Duration
	files   *Files
	log     *slog.Logger

	ctx    context.Context // ends pauses
	cancel context.CancelFunc
	wg     sync.WaitGroup
	shut   func() error // shutdown, once
	flows  flowTable

	// Of the reading goroutine alone.
	readErr error // of the last drain
	failing sparsely
}

// ServeUDP serves the datagrams of conn, which it owns from here on, until
// Close. It asks the kernel for each datagram's destination, so a filter that
// keeps datagrams away until the port is ready should go only after it returns.
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
		conn:    conn,
		local:   plain(addrPort(conn.LocalAddr())),
		backend: backend,
		idle:    cfg.Idle,
		files:   cfg.Files,
		log:     orSilent(cfg.Log),
		flows:   flowTable{max: cfg.MaxFlows},
	}
	p.raw, _ = conn.SyscallConn() // fails for a nil conn alone
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.shut = sync.OnceValue(p.shutdown)
	return p
}

func (p *UDP) start() {
	if err := enablePktinfo(p.raw); err != nil {
		// Replies leave from the address that the kernel prefers, which is
		// right wherever there is only one.
		p.log.Warn("ask for destination addresses", "frontend", p.local, "err", err)
	}
	enlargeBuffers(p.raw)
	_ = p.conn.SetReadDeadline(time.Time{}) // of whoever had conn before
	p.wg.Add(1)
	go p.readLoop()
}

// Addr is the socket's address.
func (p *UDP) Addr() net.Addr { return p.conn.LocalAddr() }

// Reset ends every flow. The next datagram of each client is looked up again.
func (p *UDP) Reset() {
	for _, f := range p.flows.takeAll(false) {
		f.close()
	}
}

// Close closes the socket, ends every flow, and returns when every goroutine
// has ended. The error is that of closing the socket; closing again returns it
// again.
func (p *UDP) Close() error { return p.shut() }

// shutdown closes the frontend first, which also frees the flows that wait to
// write to it.
func (p *UDP) shutdown() error {
	p.cancel()
	err := p.conn.Close()
	for _, f := range p.flows.takeAll(true) {
		f.close()
	}
	p.wg.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close udp proxy %s: %w", p.Addr(), err)
	}
	return nil
}

// readLoop ends when the socket is closed, and only then.
func (p *UDP) readLoop() {
	defer p.wg.Done()
	var wait backoff
	for {
		p.readErr = nil
		err := p.raw.Read(p.drain)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err = errors.Join(err, p.readErr); err != nil {
			if p.failing.now() {
				p.log.Warn("read datagrams", "frontend", p.local, "err", err)
			}
			wait.pause(p.ctx)
			continue
		}
		wait = 0
	}
}

// drain sends on what waits at the frontend, at most a batch. It is false, for
// RawConn to wait until it is called again, when there is no more; while it
// waits it holds no buffer.
func (p *UDP) drain(fd uintptr) bool {
	b := takeBuffer()
	defer b.put()
	for range batch {
		n, oobn, _, from, err := unix.Recvmsg(int(fd), b.data[:], b.oob[:], unix.MSG_DONTWAIT)
		switch err {
		case nil:
			p.forward(b.data[:n], from, parsePktinfo(b.oob[:oobn], p.local.Addr()))
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		default:
			p.readErr = err
			return true
		}
	}
	return true
}

// forward sends one datagram to its flow's backend.
func (p *UDP) forward(data []byte, from unix.Sockaddr, info pktinfo) {
	key, ok := newFlowKey(from, info)
	if !ok {
		return
	}
	f := p.flows.lookup(key)
	if f == nil {
		if f = p.open(key, from, info); f == nil {
			return
		}
	}
	f.send(data)
}

// open makes a flow, or nil if its datagram is to be dropped. The flow is in
// the table only once nothing can fail any more.
func (p *UDP) open(key flowKey, from unix.Sockaddr, info pktinfo) *flow {
	local := netip.AddrPortFrom(key.local, p.local.Port())
	epoch := p.flows.epoch()
	to, ok := p.backend(local)
	if !ok {
		p.log.Debug("drop datagram without backend", "frontend", local, "client", key.client)
		return nil
	}
	f, err := p.newFlow(key, from, info, to)
	if errors.Is(err, unix.EMFILE) && p.dropIdlest() {
		f, err = p.newFlow(key, from, info, to)
	}
	if err != nil {
		if p.failing.now() {
			p.log.Warn("open flow", "frontend", local, "client", key.client, "backend", to, "err", err)
		}
		return nil
	}
	evicted, ok := p.flows.insert(f, epoch)
	if !ok { // Reset or Close came between; to may be the backend of before
		f.close()
		return nil
	}
	if evicted != nil {
		evicted.close()
	}
	p.wg.Add(1) // cannot race with Wait: this goroutine is counted too
	go f.run()
	return f
}

// dropIdlest makes room for one flow, if there is any to drop.
func (p *UDP) dropIdlest() bool {
	f := p.flows.takeIdlest()
	if f == nil {
		return false
	}
	f.close()
	return true
}
