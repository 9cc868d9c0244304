package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// DefaultDialTimeout is long enough for two lost SYNs (1 s, then 2 s more), and
// short enough that a client hears of a dead backend before it gives up itself.
const DefaultDialTimeout = 10 * time.Second

// TCPConfig has the settings of a TCP proxy. The zero value is usable.
type TCPConfig struct {
	// DialTimeout is how long a backend may take to accept a connection;
	// 0 means DefaultDialTimeout.
	DialTimeout time.Duration
	// Files bounds the connections: one more is reset. nil means no bound.
	Files *Files
	// Log gets a line for each connection that is refused (debug), and one a
	// second at most while connections cannot be taken (warning). nil is silent.
	Log *slog.Logger
}

// TCP is the proxy of one listening socket.
type TCP struct {
	ln      *net.TCPListener
	accept  func() (*net.TCPConn, error) // ln.AcceptTCP
	backend BackendFunc
	dialer  net.Dialer
	files   *Files
	log     *slog.Logger
	failing sparsely // of the accepting goroutine

	ctx    context.Context // ends pauses and dials
	cancel context.CancelFunc
	wg     sync.WaitGroup
	shut   func() error // shutdown, once

	mu     sync.Mutex // guards below
	live   map[*tcpConn]struct{}
	closed bool
}

// ServeTCP serves the connections of ln, which it owns from here on, until
// Close. Keepalive is on, on both sides, with the intervals of package net.
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
		ln:      ln,
		accept:  ln.AcceptTCP,
		backend: backend,
		dialer:  net.Dialer{Timeout: cfg.DialTimeout},
		files:   cfg.Files,
		log:     orSilent(cfg.Log),
		live:    make(map[*tcpConn]struct{}),
	}
	// A container on a local bridge has one path, and splice wants plain TCP.
	p.dialer.SetMultipathTCP(false)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.shut = sync.OnceValue(p.shutdown)
	return p
}

func (p *TCP) start() {
	_ = p.ln.SetDeadline(time.Time{}) // of whoever had ln before
	p.wg.Add(1)
	go p.acceptLoop()
}

// Addr is the listener's address.
func (p *TCP) Addr() net.Addr { return p.ln.Addr() }

// Reset resets every live connection, on both sides, and goes on accepting.
func (p *TCP) Reset() {
	for _, c := range p.liveConns() {
		c.reset()
	}
}

// Close stops listening, resets every live connection on both sides, and
// returns when every goroutine has ended. The error is that of closing the
// listener; closing again returns it again.
func (p *TCP) Close() error { return p.shut() }

// shutdown first refuses newcomers, then ends what is live, and waits last:
// after the first step nothing can be added behind its back.
func (p *TCP) shutdown() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.ln.Close()
	p.cancel()
	p.Reset()
	p.wg.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close tcp proxy %s: %w", p.Addr(), err)
	}
	return nil
}

// acceptLoop ends when the listener is closed, and only then: a process that is
// out of file descriptors for a while must not lose its ports for ever.
func (p *TCP) acceptLoop() {
	defer p.wg.Done()
	var wait backoff
	for {
		client, err := p.accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if p.failing.now() {
				p.log.Warn("accept connection", "frontend", p.Addr(), "err", err)
			}
			wait.pause(p.ctx)
			continue
		}
		wait = 0
		if !p.files.take(filesOfConn, fdOf(client)) {
			if p.failing.now() {
				p.log.Warn("refuse connections: too many open files; raise the limit of this process (systemd: LimitNOFILE=)",
					"frontend", p.Addr(), "client", client.RemoteAddr())
			}
			abort(client)
			continue
		}
		c := newTCPConn(p.ctx, client)
		if !p.track(c) {
			p.files.give(filesOfConn)
			c.reset()
			continue
		}
		p.wg.Add(1) // cannot race with Wait: this goroutine is counted too
		go p.serve(c)
	}
}

// serve is the life of one connection.
func (p *TCP) serve(c *tcpConn) {
	defer p.wg.Done()
	defer p.files.give(filesOfConn)
	defer p.untrack(c)
	local := plain(addrPort(c.client.LocalAddr()))
	to, ok := p.backend(local)
	if !ok {
		p.log.Debug("refuse connection without backend", "frontend", local, "client", c.client.RemoteAddr())
		c.reset()
		return
	}
	backend, err := p.dialer.DialTCP(c.dialing, "tcp", netip.AddrPort{}, to)
	if err != nil {
		p.log.Debug("refuse connection", "frontend", local, "client", c.client.RemoteAddr(), "backend", to, "err", err)
		c.reset()
		return
	}
	c.splice(backend)
}

// track adds c, which Reset and Close will see from then on. It is false after
// Close.
func (p *TCP) track(c *tcpConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.live[c] = struct{}{}
	return true
}

func (p *TCP) untrack(c *tcpConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.live, c)
}

func (p *TCP) liveConns() []*tcpConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	conns := make([]*tcpConn, 0, len(p.live))
	for c := range p.live {
		conns = append(conns, c)
	}
	return conns
}

// addrPort is the address of a TCP or UDP socket of package net.
func addrPort(a net.Addr) netip.AddrPort {
	if a, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		return a.AddrPort()
	}
	return netip.AddrPort{}
}
