package portmap

import (
	"cmp"
	"slices"
)

// compareMappings orders by protocol, host port, host address and container
// port: the order of every listing.
func compareMappings(a, b Mapping) int {
	return cmp.Or(
		cmp.Compare(a.Proto, b.Proto),
		cmp.Compare(a.HostPort, b.HostPort),
		a.HostIP.Compare(b.HostIP),
		cmp.Compare(a.Port, b.Port),
	)
}

// SortMappings orders ms by protocol, host port, host address and container
// port.
func SortMappings(ms []Mapping) { slices.SortFunc(ms, compareMappings) }

// joinMappings sorts ms and joins neighbours: the same protocol, host address,
// origin and difference between host and container number, and no gap.
func joinMappings(ms []Mapping) []Mapping {
	slices.SortFunc(ms, func(a, b Mapping) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.HostIP.Compare(b.HostIP),
			cmp.Compare(a.shift(), b.shift()), cmp.Compare(a.Origin, b.Origin), cmp.Compare(a.HostPort, b.HostPort))
	})
	var out []Mapping
	for _, m := range ms {
		if n := len(out) - 1; n >= 0 && out[n].continuedBy(m) {
			out[n].HostPortEnd = m.HostPortEnd
			continue
		}
		out = append(out, m)
	}
	SortMappings(out)
	return out
}

func (m Mapping) shift() int { return int(m.Port) - int(m.HostPort) }

func (m Mapping) continuedBy(n Mapping) bool {
	return m.Proto == n.Proto && m.HostIP == n.HostIP && m.Origin == n.Origin && m.shift() == n.shift() &&
		int(m.HostPortEnd)+1 == int(n.HostPort)
}
