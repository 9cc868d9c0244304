package portmap

import (
	"errors"
	"net/netip"
	"sync/atomic"

	"github.com/portolan/portolan/proxy"
)

// hostPort is one reserved host port of a sandbox and, where the kernel cannot
// carry all that arrives there, the proxy that does.
type hostPort struct {
	lease
	asked  netip.Addr             // the host address as asked for; of a mixed network one family of it is held
	proxy  proxy.Proxy            // nil until first served
	target atomic.Pointer[Target] // nil while nobody serves
	parked bool                   // the number is the sandbox's, and no socket holds it
}

// wanted is the mapping with the host address that was asked for.
func (p *hostPort) wanted() Mapping {
	m := p.Mapping
	m.HostIP = p.asked
	return m
}

// serve sends what reaches the socket to t from now on. What was on its way to
// another target is cut.
func (p *hostPort) serve(t Target, cfg proxy.UDPConfig) error {
	old := p.target.Swap(&t)
	if p.proxy != nil {
		if old == nil || *old != t {
			p.proxy.Reset()
		}
	} else if p.Proto == TCP {
		p.proxy = proxy.ServeTCP(p.TCP, p.backend, proxy.TCPConfig{Files: cfg.Files, Log: cfg.Log})
	} else {
		udp := proxy.ServeUDP(p.UDP, p.backend, cfg)
		p.proxy, p.taken = udp, udp
	}
	return p.Open()
}

// rest keeps the port and serves nobody.
func (p *hostPort) rest() {
	p.target.Store(nil)
	if p.proxy == nil {
		return
	}
	// With no target whatever passes the filter is refused.
	_ = p.Shut()
	p.proxy.Reset()
}

// park keeps the number for the sandbox and gives the port back to the host: its
// next gateway may be an endpoint of another driver, which binds it. A port of
// a routed family has no socket to give.
func (p *hostPort) park() error {
	p.target.Store(nil)
	if p.parked || !p.held {
		return nil
	}
	err := p.close()
	p.proxy, p.parked = nil, true
	p.Socket = &Socket{sctp: -1, held: true}
	return err
}

func park(ports []*hostPort) (err error) {
	for _, port := range ports {
		err = errors.Join(err, port.park())
	}
	return err
}

// wake binds parked ports again, all or none, and returns those that were.
func (p *Publisher) wake(ports []*hostPort) (woken []*hostPort, err error) {
	for _, port := range ports {
		if !port.parked {
			continue
		}
		leases, err := p.allocators[port.Proto].bind(port.Mapping)
		if err != nil {
			return nil, join(err, park(woken))
		}
		port.Socket, port.parked = leases[0].Socket, false
		woken = append(woken, port)
	}
	return woken, nil
}

// backend is the container's side of what came to a local address: in the same
// family where the container has one.
func (p *hostPort) backend(local netip.AddrPort) (netip.AddrPort, bool) {
	t := p.target.Load()
	if t == nil {
		return netip.AddrPort{}, false
	}
	to, other := t.IPv4, t.IPv6
	if local.Addr().Unmap().Is6() {
		to, other = other, to
	}
	if !to.IsValid() {
		to = other
	}
	return netip.AddrPortFrom(to, p.Port), to.IsValid()
}

// close ends the proxy, its connections, and gives the port back.
func (p *hostPort) close() error {
	if p.proxy != nil {
		return p.proxy.Close()
	}
	return p.Socket.Close()
}

// served says whether something that the kernel does not carry to t can reach
// m's socket: a family that the container does not have, [::1] and link-local
// IPv6, and broadcast to a UDP port.
func (t Target) served(m Mapping) bool {
	if m.Proto == SCTP {
		return false
	}
	is4, is6 := m.Is4() && !t.Routed4, m.Is6() && !t.Routed6
	if is4 && !t.NAT4(m) || is6 && !t.NAT6(m) {
		return true
	}
	return m.Wildcard() && (is6 || is4 && m.Proto == UDP)
}

// serve starts, moves or stops the proxy of each of s's ports as its
// publication needs, and then the hooks, which go past it.
func (p *Publisher) serve(s *sandbox) {
	cfg := proxy.UDPConfig{Idle: p.cfg.UDPIdle, Files: &p.files, Log: p.cfg.Log}
	for _, port := range s.ports {
		if !s.pub.served(port.Mapping) {
			port.rest()
			continue
		}
		if err := port.serve(s.pub.Target, cfg); err != nil {
			p.cfg.Log.Warn("serve port", "port", port.Mapping, "err", err)
		}
	}
	p.steer(s)
}

// release closes ports and forgets them.
func (p *Publisher) release(s *sandbox, ports []*hostPort) (err error) {
	for _, port := range ports {
		err = errors.Join(err, port.close())
		if port.held {
			p.allocators[port.Proto].forget(port.Mapping, s.id)
		}
	}
	return err
}

// fresh is what is in ports and not in known.
func fresh(ports, known []*hostPort) (out []*hostPort) {
	in := make(map[*hostPort]bool, len(known))
	for _, port := range known {
		in[port] = true
	}
	for _, port := range ports {
		if !in[port] {
			out = append(out, port)
		}
	}
	return out
}
