package portmap

import (
	"cmp"
	"errors"
	"net/netip"
	"sync/atomic"

	"github.com/portolan/portolan/internal/fault"
	"github.com/portolan/portolan/proxy"
)

// hostPort is a reserved host port of a sandbox, or a block of them, and, where
// the kernel cannot carry all that arrives there, the proxy that does.
type hostPort struct {
	lease
	asked  netip.Addr             // the host address as asked for; of a mixed network one family of it is held
	proxy  proxy.Proxy            // nil until first served, and of a block, which shares one
	counts *proxy.Counters        // of a block that is served
	target atomic.Pointer[Target] // nil while nobody serves
	parked bool                   // the number is the sandbox's, and nothing keeps others off
}

// wanted is the mapping with the host address that was asked for.
func (p *hostPort) wanted() Mapping {
	m := p.Mapping
	m.HostIP = p.asked
	return m
}

// serve sends what reaches the socket to t from now on. What was on its way to
// another target is cut.
func (p *hostPort) serve(t Target, cfg proxyConfig) error {
	old := p.target.Swap(&t)
	if p.block != nil {
		return p.block.serve(p, t, old != nil && *old != t)
	}
	if p.proxy != nil {
		if old == nil || *old != t {
			p.proxy.Reset()
		}
	} else if p.Proto == TCP {
		tcp := proxy.ServeTCP(p.TCP, p.backend, cfg.tcp)
		p.proxy, p.taken = tcp, tcp
	} else {
		udp := proxy.ServeUDP(p.UDP, p.backend, cfg.udp)
		p.proxy, p.taken = udp, udp
	}
	fault.Point("serve proxy")
	return p.Open()
}

// rest keeps the port and serves nobody.
func (p *hostPort) rest() {
	p.target.Store(nil)
	if p.proxy == nil {
		if p.Socket != nil && p.adopted {
			_ = p.Shut()
		}
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
	if p.block == nil {
		p.Socket = noSocket()
	}
	return err
}

func (p *Publisher) park(ports []*hostPort) (err error) {
	closed := sockets(ports)
	for _, port := range ports {
		err = errors.Join(err, port.park())
	}
	p.unput(closed)
	return err
}

// wake binds parked ports again, all or none, and returns those that were.
func (p *Publisher) wake(ports []*hostPort) (woken []*hostPort, err error) {
	for _, port := range ports {
		if !port.parked {
			continue
		}
		if err := p.allocators[port.Proto].bindAgain(&port.lease); err != nil {
			return nil, join(err, p.park(woken))
		}
		port.parked = false
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
	return netip.AddrPortFrom(to, p.Port+(local.Port()-p.HostPort)), to.IsValid()
}

// close ends the proxy, its connections, and gives the port back.
func (p *hostPort) close() error {
	switch {
	case p.parked:
		return nil
	case p.block != nil:
		return p.block.close(p)
	case p.proxy != nil:
		return p.proxy.Close()
	}
	return p.Socket.Close()
}

// split parts p at a host port, which becomes the first of the second part. It is
// for what no socket holds: a block, or a range of a routed network.
func (p *hostPort) split(at uint16) (*hostPort, *hostPort) {
	first, second := p.part(int(p.HostPort), int(at)-1), p.part(int(at), int(p.HostPortEnd))
	parts := [2]*hostPort{}
	for i, m := range []Mapping{first, second} {
		part := &hostPort{lease: p.lease, asked: p.asked, parked: p.parked}
		part.Mapping = m
		part.target.Store(p.target.Load())
		parts[i] = part
	}
	if p.block != nil {
		p.block.all.parted(p, parts[:]...)
	}
	return parts[0], parts[1]
}

// served says whether something that the kernel does not carry to t can reach
// m's socket, by family: one that the container does not have, [::1] and
// link-local IPv6, and broadcast to a UDP port.
func (t Target) served(m Mapping) (ip4, ip6 bool) {
	if m.Proto == SCTP {
		return false, false
	}
	is4, is6 := m.Is4() && !t.Routed4, m.Is6() && !t.Routed6
	return is4 && (!t.NAT4(m) || m.Wildcard() && m.Proto == UDP), is6 && (!t.NAT6(m) || m.Wildcard())
}

// serve starts, moves or stops the proxy of each of s's ports as its
// publication needs, and then the hooks, which go past it. What s holds by now is
// to outlive this process.
func (p *Publisher) serve(s *sandbox) {
	cfg := p.proxyConfig()
	for _, port := range s.ports {
		if ip4, ip6 := s.pub.served(port.Mapping); !ip4 && !ip6 && port.block == nil {
			port.rest()
			continue
		}
		if err := port.serve(s.pub.Target, cfg); err != nil {
			p.cfg.Log.Warn("serve port", "port", port.Mapping, "err", err)
		}
	}
	p.steer(s)
	p.put(s)
}

// proxyConfig is how ports are served.
type proxyConfig struct {
	tcp proxy.TCPConfig
	udp proxy.UDPConfig
}

func (p *Publisher) proxyConfig() proxyConfig {
	return proxyConfig{
		proxy.TCPConfig{DialTimeout: p.cfg.DialTimeout, MaxConns: cmp.Or(p.cfg.MaxConns, max(proxy.MostConns()/4, 1)), Files: &p.files, Log: p.cfg.Log},
		proxy.UDPConfig{Idle: p.cfg.UDPIdle, MaxFlows: p.cfg.MaxFlows, Files: &p.files, Log: p.cfg.Log},
	}
}

// ofBlocks is c for all blocks together.
func (c proxyConfig) ofBlocks() proxyConfig {
	c.tcp.MaxConns = min(c.tcp.MaxConns*blockShare, max(proxy.MostConns()/4, 1))
	c.udp.MaxFlows *= blockShare
	return c
}

// release closes ports for good and forgets them.
func (p *Publisher) release(s *sandbox, ports []*hostPort) error {
	held := sockets(ports)
	err := p.drop(s, ports)
	p.unput(held)
	return err
}

// drop closes ports and forgets them; they may have been stored.
func (p *Publisher) drop(s *sandbox, ports []*hostPort) (err error) {
	for _, port := range ports {
		err = errors.Join(err, port.close())
		fault.Point("release port")
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
