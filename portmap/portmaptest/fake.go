// Package portmaptest has what tests of port mappings share: a Mapper in
// memory, and the tests that every Mapper passes.
//
// TestMapper is the contract in words of portmap.Mapper, for the Fake too.
// TestTraffic sends real packets; it wants a test binary that runs in a network
// namespace of its own (netnstest.Main), which plays the Docker host.
package portmaptest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/portolan/portolan/portmap"
)

// Fake is a Mapper without a kernel. It refuses what the kernel refuses.
type Fake struct {
	// Fail, if not nil, may fail an operation before it starts; that of Unmap
	// forgets the endpoint all the same. op is the
	// method's name; p has as much as the operation knows: all of it for Map,
	// the endpoint for Unmap, the network for AddNetwork and RemoveNetwork.
	Fail func(op string, p portmap.Publication) error

	mu     sync.Mutex // guards below
	nets   map[string]portmap.Network
	pubs   map[string]portmap.Publication // by endpoint
	guard4 bool
	guard6 bool
	lost   bool // the kernel's side is gone; the mirror (nets, pubs) is not
}

var _ portmap.Mapper = (*Fake)(nil)

// NewFake returns a Fake that holds nothing.
func NewFake() *Fake {
	return &Fake{nets: map[string]portmap.Network{}, pubs: map[string]portmap.Publication{}}
}

// Load replaces everything. A second Load heals what Flush did.
func (f *Fake) Load(nets []portmap.Network, pubs []portmap.Publication) error {
	if err := f.fail("Load", portmap.Publication{}); err != nil {
		return err
	}
	next := NewFake()
	for _, n := range nets {
		if err := next.AddNetwork(n); err != nil {
			return err
		}
	}
	for _, p := range pubs {
		if err := next.Map(p); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nets, f.pubs, f.lost = next.nets, next.pubs, false
	return nil
}

// AddNetwork refuses a network without an ID and a bridge name that no
// interface can have.
func (f *Fake) AddNetwork(n portmap.Network) error {
	if err := f.fail("AddNetwork", onNetwork(n.ID)); err != nil {
		return err
	}
	if n.ID == "" || n.Bridge == "" || len(n.Bridge) > 15 {
		return fmt.Errorf("add network %q: bad bridge name %q", n.ID, n.Bridge)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nets[n.ID] = n
	return nil
}

// RemoveNetwork takes the network's publications along.
func (f *Fake) RemoveNetwork(id string) error {
	if err := f.fail("RemoveNetwork", onNetwork(id)); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.nets, id)
	maps.DeleteFunc(f.pubs, func(_ string, p portmap.Publication) bool { return p.Network == id })
	return nil
}

// Map refuses an unknown network, ports out of range, and host ports that
// another endpoint has.
func (f *Fake) Map(p portmap.Publication) error {
	if err := f.fail("Map", p); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.nets[p.Network]; !ok {
		return fmt.Errorf("map endpoint %.12s: unknown network %.12s", p.Endpoint, p.Network)
	}
	for _, m := range p.Mappings {
		if err := valid(m); err != nil {
			return fmt.Errorf("map endpoint %.12s: %s: %w", p.Endpoint, m, err)
		}
		for _, other := range f.pubs {
			if other.Endpoint != p.Endpoint && holds(other, p.Target, m) {
				return fmt.Errorf("map endpoint %.12s: %s: %w by endpoint %.12s", p.Endpoint, m, portmap.ErrPortInUse, other.Endpoint)
			}
		}
	}
	p.Mappings = slices.Clone(p.Mappings)
	f.pubs[p.Endpoint] = p
	return nil
}

// Unmap removes an endpoint's mappings.
func (f *Fake) Unmap(endpoint string) error {
	err := f.fail("Unmap", portmap.Publication{Target: portmap.Target{Endpoint: endpoint}})
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pubs, endpoint)
	return err
}

// Guard implements Mapper.
func (f *Fake) Guard(ipv4, ipv6 bool) error {
	if err := f.fail("Guard", portmap.Publication{}); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.guard4, f.guard6 = ipv4, ipv6
	return nil
}

// Check says whether there was a Flush since the last one.
func (f *Fake) Check() (bool, error) {
	if err := f.fail("Check", portmap.Publication{}); err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	repaired := f.lost && len(f.nets) > 0
	f.lost = false
	return repaired, nil
}

// List has only what a kernel would carry: a family that is not translated is
// not there.
func (f *Fake) List() ([]portmap.Publication, error) {
	if err := f.fail("List", portmap.Publication{}); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lost {
		return nil, nil
	}
	var pubs []portmap.Publication
	for _, p := range f.pubs {
		if in := inKernel(p); len(in.Mappings) > 0 {
			pubs = append(pubs, in)
		}
	}
	return pubs, nil
}

// Drops is nothing: no packet comes here.
func (f *Fake) Drops() ([]portmap.Drop, error) { return nil, nil }

// Close does nothing.
func (f *Fake) Close() error { return f.fail("Close", portmap.Publication{}) }

// Flush does what `nft flush ruleset` does to a real Mapper: the kernel's side
// is gone until the next Check or Load.
func (f *Fake) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = true
}

// Networks are the networks added, by ID.
func (f *Fake) Networks() []portmap.Network {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.nets), func(a, b portmap.Network) int { return cmp.Compare(a.ID, b.ID) })
}

// Publications are all publications as they were given to Map, by endpoint.
func (f *Fake) Publications() []portmap.Publication {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.pubs), func(a, b portmap.Publication) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
}

// Guarded is what Guard was last told.
func (f *Fake) Guarded() (ipv4, ipv6 bool, err error) {
	if err := f.fail("Guarded", portmap.Publication{}); err != nil {
		return false, false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.guard4, f.guard6, nil
}

func (f *Fake) fail(op string, p portmap.Publication) error {
	if f.Fail == nil {
		return nil
	}
	return f.Fail(op, p)
}

func onNetwork(id string) portmap.Publication {
	return portmap.Publication{Target: portmap.Target{Network: id}}
}

func valid(m portmap.Mapping) error {
	switch {
	case !m.Proto.Valid():
		return errors.New("unknown protocol")
	case m.HostPort == 0 || m.HostPortEnd < m.HostPort:
		return errors.New("bad host ports")
	case m.Port == 0 || int(m.Port)+m.Len()-1 > 65535:
		return errors.New("bad container ports")
	}
	return nil
}

// holds says whether p has a host port that m of target t asks for.
func holds(p portmap.Publication, t portmap.Target, m portmap.Mapping) bool {
	return slices.ContainsFunc(p.Mappings, func(o portmap.Mapping) bool {
		if o.Proto != m.Proto || o.HostPort > m.HostPortEnd || m.HostPort > o.HostPortEnd {
			return false
		}
		if !o.Wildcard() && !m.Wildcard() && o.HostIP != m.HostIP {
			return false
		}
		both4 := o.Is4() && m.Is4() && !p.Routed4 && !t.Routed4
		both6 := o.Is6() && m.Is6() && !p.Routed6 && !t.Routed6
		return both4 || both6
	})
}

// inKernel is what of p the kernel carries. A mapping for both families of
// which it carries one is that family's wildcard.
func inKernel(p portmap.Publication) portmap.Publication {
	in := portmap.Publication{Target: portmap.Target{Endpoint: p.Endpoint}}
	for _, m := range p.Mappings {
		nat4, nat6 := p.NAT4(m), p.NAT6(m)
		if !nat4 && !nat6 {
			continue
		}
		if nat4 {
			in.IPv4 = p.IPv4
		}
		if nat6 {
			in.IPv6 = p.IPv6
		}
		switch {
		case m.HostIP.IsValid() || nat4 && nat6:
		case nat4:
			m.HostIP = netip.IPv4Unspecified()
		default:
			m.HostIP = netip.IPv6Unspecified()
		}
		m.Origin = ""
		in.Mappings = append(in.Mappings, m)
	}
	return in
}
