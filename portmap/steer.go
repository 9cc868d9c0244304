package portmap

import (
	"net"
	"net/netip"

	"github.com/portolan/portolan/internal/fault"
)

// Hooks takes this host's own IPv6 clients of host ports straight to a backend,
// past the userland proxy, which serves whom they leave alone. Package hooks has
// one; a Publisher does without where the host cannot.
type Hooks interface {
	// Set takes clients of the ports first to last of a host address, or of ::
	// for all that this host has, to a backend, of which the first port is
	// given. It replaces what the same range had before. A connected UDP socket
	// gets the same port of via, where the Mapper's rules translate it and
	// follow a move; with the zero Addr it is left alone.
	Set(proto uint8, host netip.Addr, first, last uint16, to netip.AddrPort, via netip.Addr) error
	// Delete takes that back. A range that is not set is nil.
	Delete(proto uint8, host netip.Addr, first, last uint16) error
}

// steered is a range as Hooks knows it, and where it leads.
type steered struct {
	proto       Proto
	host        netip.Addr
	first, last uint16
}

type steeredTo struct {
	to  netip.AddrPort
	via netip.Addr
}

// steering is what Hooks should do for a publication: as the proxy does, IPv6
// clients reach the container by IPv6 where it has that, else by IPv4.
func (p Publication) steering() map[steered]steeredTo {
	to := p.IPv6
	if !to.IsValid() {
		to = p.IPv4
	}
	out := map[steered]steeredTo{}
	if !to.IsValid() {
		return out
	}
	towards := sourceTowards(p.IPv6)
	for _, m := range p.Held() {
		if !m.Is6() || m.Proto == SCTP {
			continue
		}
		host := m.HostIP
		if !host.IsValid() {
			host = netip.IPv6Unspecified()
		}
		out[steered{m.Proto, host, m.HostPort, m.HostPortEnd}] = steeredTo{netip.AddrPortFrom(to, m.Port), p.translated(m, towards)}
	}
	return out
}

// translated is an address of this host where the rules carry m, for a client
// that dials another one where they cannot: the one in the container's network,
// or 127.0.0.1. Only what is published on every address is published there.
func (t Target) translated(m Mapping, towards netip.Addr) netip.Addr {
	switch {
	case m.Proto != UDP || !m.Wildcard():
	case t.NAT6(m):
		return towards
	case t.NAT4(m):
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.Addr{}
}

// sourceTowards is the address that this host would use towards another, the
// zero Addr where it has no route. Nothing is sent.
func sourceTowards(to netip.Addr) netip.Addr {
	if !to.IsValid() {
		return netip.Addr{}
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	local := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
	if local.IsLoopback() || local.IsLinkLocalUnicast() {
		return netip.Addr{}
	}
	return local
}

// steer takes Hooks from what they do for s to what its publication needs. An
// error leaves the port to the proxy.
func (p *Publisher) steer(s *sandbox) {
	if p.cfg.Hooks == nil {
		return
	}
	now := s.pub.steering()
	for r := range s.steered {
		if _, still := now[r]; still {
			continue
		}
		if err := p.cfg.Hooks.Delete(uint8(r.proto), r.host, r.first, r.last); err != nil {
			p.cfg.Log.Warn("hooks", "sandbox", s.id, "err", err)
		}
		fault.Point("hooks deleted")
	}
	for r, to := range now {
		if s.steered[r] == to {
			continue
		}
		if err := p.cfg.Hooks.Set(uint8(r.proto), r.host, r.first, r.last, to.to, to.via); err != nil {
			p.cfg.Log.Warn("hooks leave a port to the proxy", "sandbox", s.id, "err", err)
			delete(now, r)
		}
		fault.Point("hooks set")
	}
	s.steered = now
}
