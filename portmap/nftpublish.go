package portmap

import (
	"fmt"
	"net/netip"
)

// admit takes p into the mirror if no other endpoint has one of its ports.
func (m *nftMirror) admit(p Publication) error {
	if _, known := m.nets[p.Network]; !known {
		return fmt.Errorf("map ports of endpoint %.12s: no such network: %.12s", p.Endpoint, p.Network)
	}
	if err := m.free(p); err != nil {
		return err
	}
	m.enter(p)
	return nil
}

// free says whether p's ports are nobody else's, and not twice in p.
func (m *nftMirror) free(p Publication) error {
	own := portIndex{}
	for _, mp := range p.Held() {
		if s, addr, taken := m.held.conflict(mp, p.Endpoint); taken {
			return fmt.Errorf("map %s of endpoint %.12s: %w: %s port %d on %s is endpoint %.12s's",
				mp, p.Endpoint, ErrPortInUse, mp.Proto, s.first, addr, s.owner)
		}
		if _, _, twice := own.conflict(mp, ""); twice {
			return fmt.Errorf("map %s of endpoint %.12s: %w: by another of its mappings", mp, p.Endpoint, ErrPortInUse)
		}
		own.add(mp, p.Endpoint)
	}
	return nil
}

func (m *nftMirror) enter(p Publication) {
	if len(p.Mappings) == 0 {
		return
	}
	m.pubs[p.Endpoint] = p
	for _, mp := range p.Held() {
		m.held.add(mp, p.Endpoint)
	}
	for _, a := range hostMaps(p) {
		m.hosts[a]++
	}
}

func (m *nftMirror) leave(endpoint string) {
	p := m.pubs[endpoint]
	delete(m.pubs, endpoint)
	for _, mp := range p.Held() {
		m.held.remove(mp, endpoint)
	}
	for _, a := range hostMaps(p) {
		if m.hosts[a]--; m.hosts[a] == 0 {
			delete(m.hosts, a)
		}
	}
}

// replaceLocked makes p all that its endpoint publishes, in one transaction.
// What is deleted is what the mirror says is the endpoint's: the kernel deletes
// by key and would take a successor's element just as well.
func (m *NFTables) replaceLocked(p Publication) error {
	old := m.pubs[p.Endpoint]
	if len(old.Mappings) == 0 && len(p.Mappings) == 0 {
		return nil
	}
	if err := m.free(p); err != nil {
		return err
	}
	before := map[netip.Addr]bool{}
	for a := range m.hosts {
		before[a] = true
	}
	m.leave(p.Endpoint)
	m.enter(p)
	if err := m.commitLocked(old, p, before); err != nil {
		m.leave(p.Endpoint)
		m.enter(old)
		return fmt.Errorf("map ports of endpoint %.12s: %w", p.Endpoint, err)
	}
	m.gen = m.generation()
	return nil
}

func (m *NFTables) commitLocked(old, p Publication, hostsBefore map[netip.Addr]bool) error {
	gone, fresh := difference(elements(old), elements(p))
	if err := m.conn.delElems(gone); err != nil {
		return err
	}
	var added []netip.Addr
	for a := range m.hosts {
		if hostsBefore[a] {
			continue
		}
		added = append(added, a)
		if err := m.conn.add(planHost(a)); err != nil {
			return err
		}
		fresh = append(fresh, hostElement(a))
	}
	if err := m.conn.addElems(fresh); err != nil {
		return err
	}
	for a := range hostsBefore {
		if m.hosts[a] > 0 {
			continue
		}
		if err := m.conn.delElems([]nftElem{hostElement(a)}); err != nil {
			return err
		}
		m.conn.remove(planHost(a))
	}
	err := m.conn.Flush()
	if err != nil {
		// What this transaction would have made or removed is as it was.
		for _, a := range added {
			for _, s := range planHost(a).sets {
				delete(m.conn.sets, s.name)
			}
		}
		for a := range hostsBefore {
			for _, s := range planHost(a).sets {
				m.conn.sets[s.name] = s
			}
		}
	}
	return err
}

// difference is what only a has and what only b has.
func difference(a, b []nftElem) (onlyA, onlyB []nftElem) {
	in := make(map[nftElem]bool, len(a))
	for _, e := range a {
		in[e] = true
	}
	for _, e := range b {
		if in[e] {
			delete(in, e)
		} else {
			onlyB = append(onlyB, e)
		}
	}
	for _, e := range a {
		if in[e] {
			onlyA = append(onlyA, e)
		}
	}
	return onlyA, onlyB
}
