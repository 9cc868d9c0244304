package portmap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// publish adds what an endpoint publishes, which must not be there yet.
func (m *iptMirror) publish(p Publication) error {
	if _, known := m.nets[p.Network]; !known {
		return fmt.Errorf("map ports of endpoint %.12s: no such network: %.12s", p.Endpoint, p.Network)
	}
	if p.Endpoint == "" || len(p.Endpoint) > 200 || strings.ContainsFunc(p.Endpoint, iptUnsafe) {
		return fmt.Errorf("map ports of endpoint %.12q: bad endpoint ID", p.Endpoint)
	}
	if len(p.Mappings) == 0 {
		return nil
	}
	for _, mp := range p.Mappings {
		if err := iptValid(mp); err != nil {
			return fmt.Errorf("map %s of endpoint %.12s: %w", mp, p.Endpoint, err)
		}
		held, any := iptHeld(p.Target, mp)
		if !any {
			continue
		}
		switch s, addr, taken := m.held.conflict(held, ""); {
		case taken && s.owner == p.Endpoint:
			return fmt.Errorf("map %s of endpoint %.12s: %w: by another of its mappings", mp, p.Endpoint, ErrPortInUse)
		case taken:
			return fmt.Errorf("map %s of endpoint %.12s: %w: %s port %d on %s is endpoint %.12s's",
				mp, p.Endpoint, ErrPortInUse, mp.Proto, s.first, addr, s.owner)
		}
		m.held.add(held, p.Endpoint)
	}
	p.Mappings = slices.Clone(p.Mappings)
	m.pubs[p.Endpoint] = p
	return nil
}

// leave removes all that an endpoint publishes.
func (m *iptMirror) leave(endpoint string) {
	p := m.pubs[endpoint]
	delete(m.pubs, endpoint)
	for _, mp := range p.Mappings {
		if held, any := iptHeld(p.Target, mp); any {
			m.held.remove(held, endpoint)
		}
	}
}

// iptHeld is the part of a mapping that takes host ports: that of the families
// that are translated.
func iptHeld(t Target, m Mapping) (held Mapping, any bool) {
	is4, is6 := m.Is4() && !t.Routed4, m.Is6() && !t.Routed6
	if m.HostIP.IsValid() || is4 == is6 {
		return m, is4 || is6
	}
	m.HostIP = netip.IPv6Unspecified()
	if is4 {
		m.HostIP = netip.IPv4Unspecified()
	}
	return m, true
}

func iptValid(m Mapping) error {
	switch {
	case !m.Proto.Valid():
		return errors.New("unknown protocol")
	case m.HostPort == 0 || m.HostPortEnd < m.HostPort:
		return errors.New("host ports are not a range of 1 to 65535")
	case m.Port == 0 || int(m.Port)+m.Len() > 65536:
		return errors.New("container ports are not a range of 1 to 65535")
	}
	return nil
}

// readBridges looks for other drivers' bridges. Docker's usual names are among
// them whether such a bridge is there or not, as one may be made any time; one
// with another name is seen by the next Check. Without an answer of the kernel
// it all stays as it was.
func (m *iptMirror) readBridges() {
	links, err := netlink.LinkList()
	if err != nil {
		return
	}
	uplinks := uplinkBridges()
	own := map[string]bool{}
	for _, n := range m.nets {
		own[n.Bridge] = true
	}
	foreign := []string{"docker+", "br-+"}
	for _, l := range links {
		name := l.Attrs().Name
		if l.Type() != "bridge" || own[name] || slices.Contains(uplinks, name) ||
			strings.HasPrefix(name, "docker") || strings.HasPrefix(name, "br-") || strings.ContainsFunc(name, iptUnsafe) {
			continue
		}
		foreign = append(foreign, name)
	}
	slices.Sort(foreign)
	m.uplinks, m.foreign = uplinks, foreign
}
