package portmap

import (
	"net/netip"
	"slices"
)

// portIndex knows who holds which host ports, as ranges. It answers the one
// question of allocators and mappers: would this mapping meet another's ports?
// A wildcard holds its ports on every address of its family.
//
// The zero portIndex is empty. It is not safe for concurrent use.
type portIndex map[hostKey][]span

// hostKey is one host address of one protocol; the wildcards are 0.0.0.0 and
// ::, and a mapping without a host address is under both.
type hostKey struct {
	proto Proto
	addr  netip.Addr
}

// span is a closed range of ports; those of one hostKey do not overlap and are
// sorted.
type span struct {
	first, last uint16
	owner       string
}

// hostAddrs are the addresses under which m is indexed: one, or both wildcards.
func (m Mapping) hostAddrs() []netip.Addr {
	if m.HostIP.IsValid() {
		return []netip.Addr{m.HostIP}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}

// conflict returns the first port of m that somebody other than self holds, and
// its holder.
func (x portIndex) conflict(m Mapping, self string) (s span, addr netip.Addr, found bool) {
	look := func(k hostKey) {
		for _, got := range x.overlapping(k, m.HostPort, m.HostPortEnd) {
			if got.owner != self && (!found || got.first < s.first) {
				s, addr, found = got, k.addr, true
			}
		}
	}
	for _, a := range m.hostAddrs() {
		if !a.IsUnspecified() {
			look(hostKey{m.Proto, a})
			look(hostKey{m.Proto, wildcardOf(a)})
			continue
		}
		for k := range x {
			if k.proto == m.Proto && k.addr.Is4() == a.Is4() {
				look(k)
			}
		}
	}
	s.first = max(s.first, m.HostPort)
	s.last = min(s.last, m.HostPortEnd)
	return s, addr, found
}

// count is how many ports of m somebody holds.
func (x portIndex) count(m Mapping) (n int) {
	for i := range m.Len() {
		if _, _, taken := x.conflict(m.at(i), ""); taken {
			n++
		}
	}
	return n
}

// add records that owner holds m's ports, which must be free.
func (x portIndex) add(m Mapping, owner string) {
	for _, a := range m.hostAddrs() {
		k := hostKey{m.Proto, a}
		i := x.search(k, m.HostPort)
		x[k] = slices.Insert(x[k], i, span{m.HostPort, m.HostPortEnd, owner})
	}
}

// remove forgets what owner holds of m's ports; what is left of a span that is
// cut stays.
func (x portIndex) remove(m Mapping, owner string) {
	for _, a := range m.hostAddrs() {
		k := hostKey{m.Proto, a}
		i := x.search(k, m.HostPort)
		for i < len(x[k]) && x[k][i].first <= m.HostPortEnd {
			s := x[k][i]
			if s.owner != owner {
				i++
				continue
			}
			var rest []span
			if s.first < m.HostPort {
				rest = append(rest, span{s.first, m.HostPort - 1, owner})
			}
			if s.last > m.HostPortEnd {
				rest = append(rest, span{m.HostPortEnd + 1, s.last, owner})
			}
			x[k] = slices.Replace(x[k], i, i+1, rest...)
			i += len(rest)
		}
		if len(x[k]) == 0 {
			delete(x, k)
		}
	}
}

// search is the place of the first span that does not end before port.
func (x portIndex) search(k hostKey, port uint16) int {
	i, _ := slices.BinarySearchFunc(x[k], port, func(s span, p uint16) int {
		if s.last < p {
			return -1
		}
		return 1
	})
	return i
}

func (x portIndex) overlapping(k hostKey, first, last uint16) []span {
	i := x.search(k, first)
	j := i
	for j < len(x[k]) && x[k][j].first <= last {
		j++
	}
	return x[k][i:j]
}

func wildcardOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
