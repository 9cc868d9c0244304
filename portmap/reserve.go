package portmap

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
)

// request is a binding that leaves a choice, on its way to a port.
type request struct {
	PortBinding
	got *hostPort
}

// samePort are requests that take one number: they differ in their host address
// alone.
type samePort []*request

// reserve gives every binding its host port: those that the sandbox has are
// kept; then exact ports, ranges, and any free port, in this order, so that
// what could be elsewhere does not sit on what cannot. After an error nothing
// new is held.
func (p *Publisher) reserve(s *sandbox, t Target, bs []PortBinding) (wanted []*hostPort, err error) {
	exact, groups, err := group(bs)
	if err != nil {
		return nil, err
	}
	wanted, missing := s.keepExact(t, exact)
	kept, more := s.keepAny(t, wanted, groups)
	wanted = append(wanted, kept...)
	var made []*hostPort
	defer func() {
		if err != nil {
			err = errors.Join(err, p.release(s, made))
		}
	}()
	for _, m := range joinMappings(append(missing, more...)) {
		ports, err := p.reserveRange(s, t, m)
		made = append(made, ports...)
		if err != nil {
			return nil, err
		}
	}
	for _, g := range groups {
		if g.settled() {
			continue
		}
		ports, err := p.reserveAny(s, t, g)
		made = append(made, ports...)
		if err != nil {
			return nil, err
		}
	}
	return append(wanted, made...), nil
}

// exact says whether one host port alone would do for each container port.
func (b PortBinding) exact() bool {
	return b.HostPort != 0 && (b.HostPort == b.HostPortEnd || b.PortEnd > b.Port)
}

// group checks bindings. It joins those that are exact to ranges, and puts those
// that leave a choice and take one number together, the least free first.
func group(bs []PortBinding) (exact []Mapping, groups []samePort, err error) {
	type key struct {
		proto                       Proto
		port, hostPort, hostPortEnd uint16
	}
	last := map[key]int{} // the newest group
	for _, b := range bs {
		if b, err = b.normal(); err != nil {
			return nil, nil, err
		}
		if b.exact() {
			exact = append(exact, b.mapping())
			continue
		}
		r := &request{PortBinding: b}
		k := key{b.Proto, b.Port, b.HostPort, b.HostPortEnd}
		i, known := last[k]
		if known && !slices.ContainsFunc(groups[i], r.overlaps) {
			groups[i] = append(groups[i], r)
			continue
		}
		last[k] = len(groups)
		groups = append(groups, samePort{r})
	}
	slices.SortStableFunc(groups, func(a, b samePort) int { return cmp.Compare(a[0].freedom(), b[0].freedom()) })
	return joinMappings(exact), groups, nil
}

// freedom is how many host ports would do: some, or any.
func (r *request) freedom() int {
	if r.HostPort == 0 {
		return 1
	}
	return 0
}

// overlaps says whether one number cannot serve both: their host addresses are
// the same, or one includes the other.
func (r *request) overlaps(o *request) bool { return sameHost(r.mapping(), o.mapping()) }

// sameHost says whether the host address of one mapping is among the other's.
func sameHost(a, b Mapping) bool {
	if !a.Wildcard() && !b.Wildcard() {
		return a.HostIP == b.HostIP
	}
	return a.Is4() && b.Is4() || a.Is6() && b.Is6()
}

// mapping is the binding as a mapping; where it leaves a choice, its host ports
// are what to choose from.
func (b PortBinding) mapping() Mapping {
	return Mapping{Proto: b.Proto, HostIP: b.HostIP, HostPort: b.HostPort, HostPortEnd: b.HostPortEnd, Port: b.Port, Origin: OriginEngine}
}

// settled says whether the group has its number.
func (g samePort) settled() bool { return g[0].HostPort != 0 && g[0].HostPort == g[0].HostPortEnd }

// reserveRange takes every port of m, in the families that are not routed: a
// range is one thing, and its error is one error.
func (p *Publisher) reserveRange(s *sandbox, t Target, m Mapping) (made []*hostPort, err error) {
	held := Publication{t, []Mapping{m}}.Held()
	if len(held) == 0 {
		return []*hostPort{{lease: lease{Mapping: m, Socket: noSocket()}, asked: m.HostIP}}, nil
	}
	leases, err := p.allocators[m.Proto].Exact(held[0], s.id)
	return asked(leases, m.HostIP), err
}

// reserveAny takes one number for a group that leaves a choice.
func (p *Publisher) reserveAny(s *sandbox, t Target, g samePort) (made []*hostPort, err error) {
	var ms []Mapping
	var ips []netip.Addr
	for _, r := range g {
		held := Publication{t, []Mapping{r.mapping()}}.Held()
		if len(held) > 0 {
			ms, ips = append(ms, held[0]), append(ips, r.HostIP)
			continue
		}
		// Nothing is reserved in a routed family: the container's own number.
		m := r.mapping()
		m.HostPort, m.HostPortEnd = m.Port, m.Port
		made = append(made, &hostPort{lease: lease{Mapping: m, Socket: noSocket()}, asked: m.HostIP})
	}
	if len(ms) == 0 {
		return made, nil
	}
	leases, err := p.allocators[ms[0].Proto].Any(ms, s.id)
	for i, l := range leases {
		made = append(made, asked([]lease{l}, ips[i])...)
	}
	return made, err
}

func asked(leases []lease, ip netip.Addr) []*hostPort {
	ports := make([]*hostPort, len(leases))
	for i, l := range leases {
		ports[i] = &hostPort{lease: l, asked: ip}
	}
	return ports
}

// mappingsOf joins ports to ranges, with the host addresses that were asked for.
func mappingsOf(ports []*hostPort) []Mapping {
	ms := make([]Mapping, len(ports))
	for i, port := range ports {
		ms[i] = port.wanted()
	}
	return joinMappings(ms)
}
