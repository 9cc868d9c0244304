package portmap

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/portolan/portolan/internal/fault"
)

// publish counts the host addresses that p names, each of which has a chain.
func (m *nftMirror) publish(p Publication) error {
	if err := m.mirror.publish(p); err != nil {
		return err
	}
	for _, a := range hostMaps(p) {
		m.hosts[a]++
	}
	return nil
}

func (m *nftMirror) leave(endpoint string) {
	for _, a := range hostMaps(m.pubs[endpoint]) {
		if m.hosts[a]--; m.hosts[a] == 0 {
			delete(m.hosts, a)
		}
	}
	m.mirror.leave(endpoint)
}

// replaceLocked makes p all that its endpoint publishes, in one transaction.
// What is deleted is what the mirror says is the endpoint's: the kernel deletes
// by key and would take a successor's element just as well.
func (m *NFTables) replaceLocked(p Publication) error {
	old := m.pubs[p.Endpoint]
	if len(old.Mappings) == 0 && len(p.Mappings) == 0 {
		return nil
	}
	hosts, limits := maps.Clone(m.hosts), m.anyLimits()
	before := m.generation()
	m.leave(p.Endpoint)
	err := m.enter(p)
	if err == nil {
		err = m.commitLocked(old, p, hosts, limits)
		if err == nil {
			m.transactedLocked(before)
		} else if err = m.anewLocked(err); err != nil {
			m.leave(p.Endpoint)
			err = fmt.Errorf("map ports of endpoint %.12s: %w", p.Endpoint, err)
		}
	}
	if err != nil {
		return errors.Join(err, m.enter(old))
	}
	fault.Point("nft endpoint set")
	return nil
}

// enter is publish, but for a publication of nothing.
func (m *nftMirror) enter(p Publication) error {
	if len(p.Mappings) == 0 {
		return nil
	}
	return m.publish(p)
}

func (m *NFTables) commitLocked(old, p Publication, hostsBefore map[netip.Addr]int, limitsBefore bool) error {
	gone, fresh := difference(elements(old), elements(p))
	if err := m.conn.delElems(gone); err != nil {
		return err
	}
	unlimit := m.relimitLocked(old, p, limitsBefore)
	var added []netip.Addr
	for a := range m.hosts {
		if hostsBefore[a] > 0 {
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
	unlimit()
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
