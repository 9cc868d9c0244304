package proxy

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
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
	// Counters, if not nil, has the numbers of a proxy that serves several ports
	// counted apart; Samples then has only those of the socket.
	Counters CountersFunc
	// Files bounds the flows of all ports together: one more is not opened. nil
	// means no bound.
	Files *Files
	// Log gets a line for each refused datagram (debug), and one a second at
	// most while flows or reads fail (warning). nil is silent.
	Log *slog.Logger
}

// UDP is the proxy of one UDP socket. Its state belongs to the hub.
type UDP struct {
	frontend
	timer
	backend  BackendFunc
	idle     time.Duration
	maxFlows int
	files    *Files
	tally    tally
	shut     func() error // shutdown, once

	loop  *udpLoop // nil before join
	flows flowTable

	outlet  outlet // the socket, for replies
	steered bool   // flows have fronts

	receive func(b *batch, fd int) (int, error)
	retry   time.Time // when to read again after an error; usually zero
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
		frontend: newFrontend(&udpHub.mu, conn, conn.LocalAddr(), cfg.Log),
		backend:  backend,
		idle:     cfg.Idle,
		maxFlows: cfg.MaxFlows,
		files:    cfg.Files,
		tally:    tally{of: cfg.Counters},
		receive:  (*batch).receiveRequests,
	}
	p.outlet.fd = p.fd
	p.shut = sync.OnceValue(p.shutdown)
	return p
}

func (p *UDP) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return
	}
	if err := enablePktinfo(p.fd); err != nil {
		// Replies leave from the address that the kernel prefers, which is
		// right wherever there is only one.
		p.log.Warn("ask for destination addresses", "frontend", p.local, "err", err)
	}
	if p.steered {
		if err := enableOrigDst(p.fd); err != nil {
			p.log.Warn("ask for destination ports: no steered datagram is served", "frontend", p.local, "err", err)
		}
	}
	enlargeBuffers(p.fd)
	p.join(func() (err error) {
		p.loop, err = udpHub.enter(p.fd, p)
		return err
	})
}

// Samples implements Counted.
func (p *UDP) Samples() []Sample {
	return p.samplesOf(&p.tally, Sample{Name: "portolan_proxy_socket_drops_total"})
}

// Reset ends every flow. The next datagram of each client is looked up again.
func (p *UDP) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endFlows()
}

// ResetWhere implements Proxy.
func (p *UDP) ResetWhere(in func(netip.AddrPort) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.flows.flows {
		if in(f.key.local) {
			p.endFlow(f)
		}
	}
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
	p.mu.Lock()
	p.endFlows()
	var ended <-chan struct{}
	if l := p.loop; l != nil {
		l.due.set(p, time.Time{})
		l.unwatch(p.fd)
		ended = udpHub.leave()
	}
	err := p.close()
	p.mu.Unlock()
	if ended != nil {
		<-ended
	}
	if err != nil {
		return fmt.Errorf("close udp proxy %s: %w", p.Addr(), err)
	}
	return nil
}
