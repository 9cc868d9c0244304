package portmap

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// iptMirror is what the rules are made of.
type iptMirror struct {
	nets           map[string]Network
	pubs           map[string]Publication // by endpoint
	held           portIndex              // owners are endpoints
	guard4, guard6 bool
	uplinks        []string // bridges that lead to a LAN
	foreign        []string // interfaces that lead to other drivers' containers; + is any ending
}

func newIPTMirror() *iptMirror {
	return &iptMirror{nets: map[string]Network{}, pubs: map[string]Publication{}, held: portIndex{}}
}

// clone is a copy to change, and to keep if the kernel takes it.
func (m *iptMirror) clone() *iptMirror {
	next := *m
	next.nets, next.pubs, next.held = maps.Clone(m.nets), maps.Clone(m.pubs), portIndex{}
	for k, spans := range m.held {
		next.held[k] = slices.Clone(spans)
	}
	return &next
}

// addNetwork refuses names that would be something else in a rule.
func (m *iptMirror) addNetwork(n Network) error {
	for _, name := range append([]string{n.Bridge}, n.Trusted...) {
		if name == "" || len(name) > 15 || strings.ContainsFunc(name, iptUnsafe) {
			return fmt.Errorf("add network %.12s to iptables: bad interface name %q", n.ID, name)
		}
	}
	m.nets[n.ID] = n
	return nil
}

// iptUnsafe says whether a letter in a name may end or change a word of a rule:
// + at the end of an interface's name is a pattern.
func iptUnsafe(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune("\"'\\+!", r)
}

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
		held, some := iptHeld(p.Target, mp)
		if !some {
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
		if held, some := iptHeld(p.Target, mp); some {
			m.held.remove(held, endpoint)
		}
	}
}

// iptHeld is the part of a mapping that takes host ports: that of the families
// that are translated.
func iptHeld(t Target, m Mapping) (held Mapping, some bool) {
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
