package portmap

import (
	"cmp"
	"net/netip"
	"slices"
)

// keepable are the sandbox's ports that are of use to a target. One that was not
// reserved, of a routed network, is of none where t's ports are.
func (s *sandbox) keepable(t Target) []*hostPort {
	return slices.DeleteFunc(slices.Clone(s.ports), func(port *hostPort) bool {
		return !port.held && len(Publication{t, []Mapping{port.wanted()}}.Held()) > 0
	})
}

// keepExact finds what the sandbox has of ms already, and what it has not. What
// it has of a range is parted from the rest of that range.
func (s *sandbox) keepExact(t Target, ms []Mapping) (kept []*hostPort, missing []Mapping) {
	type key struct {
		proto Proto
		ip    netip.Addr
		shift int
	}
	have := map[key][]*hostPort{}
	for _, port := range s.keepable(t) {
		k := key{port.Proto, port.asked, port.shift()}
		have[k] = append(have[k], port)
	}
	for _, ports := range have {
		slices.SortFunc(ports, func(a, b *hostPort) int { return cmp.Compare(a.HostPort, b.HostPort) })
	}
	for _, m := range ms {
		k := key{m.Proto, m.HostIP, m.shift()}
		rest := have[k]
		for len(rest) > 0 && rest[0].HostPortEnd < m.HostPort {
			rest = rest[1:]
		}
		next := int(m.HostPort) // of m's ports
		for len(rest) > 0 && rest[0].HostPort <= m.HostPortEnd {
			port := rest[0]
			rest = rest[1:]
			if port.HostPort < m.HostPort {
				_, port = s.split(port, m.HostPort)
			}
			if port.HostPortEnd > m.HostPortEnd {
				var after *hostPort
				port, after = s.split(port, m.HostPortEnd+1)
				rest = slices.Insert(slices.Clone(rest), 0, after)
			}
			if next < int(port.HostPort) {
				missing = append(missing, m.part(next, int(port.HostPort)-1))
			}
			next = int(port.HostPortEnd) + 1
			kept = append(kept, port)
		}
		if next <= int(m.HostPortEnd) {
			missing = append(missing, m.part(next, int(m.HostPortEnd)))
		}
		have[k] = rest // ms are sorted; what is asked for twice is missing the second time
	}
	return kept, missing
}

// part is m from one of its host ports to another.
func (m Mapping) part(first, last int) Mapping {
	m.Port += uint16(first) - m.HostPort
	m.HostPort, m.HostPortEnd = uint16(first), uint16(last)
	return m
}

// split parts one of the sandbox's ports in two, of which the second begins at a
// number of the host.
func (s *sandbox) split(port *hostPort, at uint16) (a, b *hostPort) {
	a, b = port.split(at)
	i := slices.Index(s.ports, port)
	s.ports = slices.Replace(slices.Clone(s.ports), i, i+1, a, b)
	return a, b
}

// keepAny gives requests that leave a choice the ports that the sandbox has
// already, but for those that are taken. A group of which one has a port takes
// that number for all: for the others that is missing.
func (s *sandbox) keepAny(t Target, taken []*hostPort, groups []samePort) (kept []*hostPort, missing []Mapping) {
	type key struct {
		proto Proto
		ip    netip.Addr
		port  uint16
	}
	have := map[key][]*hostPort{}
	for _, port := range fresh(s.keepable(t), taken) {
		if port.Len() == 1 {
			k := key{port.Proto, port.asked, port.Port}
			have[k] = append(have[k], port)
		}
	}
	for _, g := range groups {
		for _, r := range g {
			k := key{r.Proto, r.HostIP, r.Port}
			i := slices.IndexFunc(have[k], func(port *hostPort) bool { return r.accepts(port.HostPort) })
			if i < 0 {
				continue
			}
			r.got = have[k][i]
			have[k] = slices.Delete(have[k], i, i+1)
			for _, o := range g {
				o.HostPort, o.HostPortEnd = r.got.HostPort, r.got.HostPort
			}
		}
		if !g.settled() {
			continue
		}
		for _, r := range g {
			if r.got != nil {
				kept = append(kept, r.got)
			} else {
				missing = append(missing, r.mapping())
			}
		}
	}
	return kept, missing
}

func (r *request) accepts(port uint16) bool {
	return r.HostPort == 0 || r.HostPort <= port && port <= r.HostPortEnd
}
