package portmap

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
)

// request is a binding on its way to a port.
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
	groups, err := group(bs)
	if err != nil {
		return nil, err
	}
	byFreedom := func(a, b samePort) int { return cmp.Compare(a[0].freedom(), b[0].freedom()) }
	// Who wants one port takes it back before who would take any.
	slices.SortStableFunc(groups, byFreedom)
	keep(t, s.ports, groups)
	slices.SortStableFunc(groups, byFreedom)
	var made []*hostPort
	defer func() {
		if err != nil {
			err = errors.Join(err, p.release(s, made))
		}
	}()
	n := 0
	for n < len(groups) && groups[n][0].freedom() == 0 {
		n++
	}
	ports, err := p.reserveExact(s, t, groups[:n])
	made = append(made, ports...)
	if err != nil {
		return nil, err
	}
	for _, g := range groups[n:] {
		ports, err := p.reserveAny(s, t, g)
		made = append(made, ports...)
		if err != nil {
			return nil, err
		}
	}
	for _, g := range groups {
		for _, r := range g {
			if r.got != nil {
				wanted = append(wanted, r.got)
			}
		}
	}
	return append(wanted, fresh(made, wanted)...), nil
}

// freedom is how many host ports would do: none but one, some, or any.
func (r *request) freedom() int {
	switch {
	case r.HostPort == 0:
		return 2
	case r.HostPort < r.HostPortEnd:
		return 1
	}
	return 0
}

// group checks bindings and puts those that take one number together.
func group(bs []PortBinding) (groups []samePort, err error) {
	type key struct {
		proto                       Proto
		port, hostPort, hostPortEnd uint16
	}
	last := map[key]int{} // the newest group
	for _, b := range bs {
		if b, err = b.normal(); err != nil {
			return nil, err
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
	return groups, nil
}

// overlaps says whether one number cannot serve both: their host addresses are
// the same, or one includes the other.
func (r *request) overlaps(o *request) bool {
	a, b := r.mapping(), o.mapping()
	if !a.Wildcard() && !b.Wildcard() {
		return a.HostIP == b.HostIP
	}
	return a.Is4() && b.Is4() || a.Is6() && b.Is6()
}

// keep gives requests the ports that the sandbox has already. A group of which
// one has a port takes that number for all. A port that was not reserved, of a
// routed network, is of no use to a target whose ports are.
func keep(t Target, ports []*hostPort, groups []samePort) {
	type key struct {
		proto Proto
		ip    netip.Addr
		port  uint16
	}
	have := map[key][]*hostPort{}
	for _, port := range ports {
		if !port.held && len(Publication{t, []Mapping{port.wanted()}}.Held()) > 0 {
			continue
		}
		k := key{port.Proto, port.asked, port.Port}
		have[k] = append(have[k], port)
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
	}
}

func (r *request) accepts(port uint16) bool {
	return r.HostPort == 0 || r.HostPort <= port && port <= r.HostPortEnd
}

// mapping is the request as a mapping; of a range, its host ports are what to
// choose from.
func (r *request) mapping() Mapping {
	return Mapping{Proto: r.Proto, HostIP: r.HostIP, HostPort: r.HostPort, HostPortEnd: r.HostPortEnd, Port: r.Port, Origin: OriginEngine}
}

// reserveExact takes neighbours together: a range is one thing, and its error is
// one error.
func (p *Publisher) reserveExact(s *sandbox, t Target, groups []samePort) (made []*hostPort, err error) {
	var ms []Mapping
	for _, g := range groups {
		for _, r := range g {
			if r.got == nil {
				ms = append(ms, r.mapping())
			}
		}
	}
	for _, m := range joinMappings(ms) {
		ports, err := p.reserveRange(s, t, m)
		if err != nil {
			return made, err
		}
		made = append(made, ports...)
	}
	return made, nil
}

// reserveRange takes every port of m, in the families that are not routed.
func (p *Publisher) reserveRange(s *sandbox, t Target, m Mapping) (made []*hostPort, err error) {
	held := Publication{t, []Mapping{m}}.Held()
	if len(held) == 0 {
		for i := range m.Len() {
			made = append(made, &hostPort{lease: lease{m.at(i), noSocket()}, asked: m.HostIP})
		}
		return made, nil
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
		made = append(made, &hostPort{lease: lease{m, noSocket()}, asked: m.HostIP})
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
