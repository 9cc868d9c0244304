package portmap

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
)

// List implements Mapper by reading the port maps back.
func (m *NFTables) List() ([]Publication, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.base {
		return nil, nil
	}
	found := map[string]*nftFound{}
	hosts := []netip.Addr{{}}
	for a := range m.hosts {
		hosts = append(hosts, a)
	}
	for _, h := range hosts {
		for _, is4 := range families {
			if h.IsValid() && h.Is4() != is4 {
				continue
			}
			for _, p := range Protos {
				for _, single := range []bool{false, true} {
					if err := m.listMap(found, p, is4, h, single); err != nil {
						return nil, err
					}
				}
			}
		}
	}
	var pubs []Publication
	for _, f := range found {
		pubs = append(pubs, f.publication())
	}
	return pubs, nil
}

// nftFound gathers what the kernel has for an endpoint.
type nftFound struct {
	Publication
	fams map[Mapping][2]bool // IPv6, IPv4; HostIP zero for a wildcard
}

func (m *NFTables) listMap(found map[string]*nftFound, p Proto, is4 bool, host netip.Addr, single bool) error {
	name := portMap(p, is4, host, single)
	es, err := m.readLocked(name)
	if err != nil {
		return err
	}
	size := 4
	if !is4 {
		size = 16
	}
	for i, e := range es {
		if e.IntervalEnd {
			continue
		}
		addr, _ := netip.AddrFromSlice(e.Val[:size])
		first := binary.BigEndian.Uint16(e.Key)
		mp := Mapping{Proto: p, HostIP: host, HostPort: first, HostPortEnd: first, Port: first}
		if single {
			mp.Port = binary.BigEndian.Uint16(e.Val[size:])
		} else if mp.HostPortEnd = 65535; i+1 < len(es) {
			mp.HostPortEnd = binary.BigEndian.Uint16(es[i+1].Key) - 1
		}
		f := found[e.Comment]
		if f == nil {
			f = &nftFound{Publication: Publication{Target: Target{Endpoint: e.Comment}}, fams: map[Mapping][2]bool{}}
			found[e.Comment] = f
		}
		fam := f.fams[mp]
		if is4 {
			f.IPv4, fam[1] = addr, true
		} else {
			f.IPv6, fam[0] = addr, true
		}
		f.fams[mp] = fam
	}
	return nil
}

// readLocked lists a set. The kernel grows a hash in the background, and a
// listing meanwhile misses elements and has others twice; so one that is not
// what the mirror expects is read again before it is believed.
func (m *NFTables) readLocked(name string) (es []nftables.SetElement, err error) {
	s := m.conn.sets[name]
	for range 10 {
		es, err = m.conn.GetSetElements(s.set(m.conn.table))
		if err != nil {
			return nil, fmt.Errorf("list set %s: %w", name, err)
		}
		es = sortElements(es)
		if countStarts(es, s.interval) == m.expectedLocked(name) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return es, nil
}

// sortElements sorts by key, the end of one interval before the start of the
// next, and drops what is there twice.
func sortElements(es []nftables.SetElement) []nftables.SetElement {
	slices.SortFunc(es, func(a, b nftables.SetElement) int {
		if c := slices.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		return boolCompare(b.IntervalEnd, a.IntervalEnd)
	})
	return slices.CompactFunc(es, func(a, b nftables.SetElement) bool {
		return slices.Equal(a.Key, b.Key) && a.IntervalEnd == b.IntervalEnd
	})
}

// expectedLocked is how many elements the mirror has in a set.
func (m *NFTables) expectedLocked(name string) (n int) {
	interval := m.conn.sets[name].interval
	for e := range m.allElements() {
		if e.set == name {
			n += len(e.raw(interval))
		}
	}
	return n
}

// allElements are the elements of the whole table.
func (m *NFTables) allElements() iter.Seq[nftElem] {
	return func(yield func(nftElem) bool) {
		for _, n := range m.nets {
			for _, e := range networkElements(n) {
				if !yield(e) {
					return
				}
			}
		}
		for a := range m.hosts {
			if !yield(hostElement(a)) {
				return
			}
		}
		for _, p := range m.pubs {
			for _, e := range elements(p) {
				if !yield(e) {
					return
				}
			}
		}
		for _, e := range uplinkElements(m.uplinks) {
			if !yield(e) {
				return
			}
		}
	}
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// publication joins single ports to ranges again. A wildcard of one family is
// told from one of both only where the endpoint has addresses of both.
func (f *nftFound) publication() Publication {
	for mp, fam := range f.fams {
		if !mp.HostIP.IsValid() && f.IPv4.IsValid() && f.IPv6.IsValid() && fam[0] != fam[1] {
			mp.HostIP = netip.IPv6Unspecified()
			if fam[1] {
				mp.HostIP = netip.IPv4Unspecified()
			}
		}
		f.Mappings = append(f.Mappings, mp)
	}
	f.Mappings = joinMappings(f.Mappings)
	return f.Publication
}
