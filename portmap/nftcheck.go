package portmap

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
)

// generation is the kernel's count of ruleset changes, of all tables; 0 where
// it does not say.
func (m *NFTables) generation() uint32 {
	g, err := m.conn.generation()
	if err != nil {
		m.log.Debug("nftables generation is not known; every check looks at all rules", "err", err)
	}
	return g
}

// Check implements Mapper. It looks no further where nothing in nftables has
// changed since the last change of ours.
func (m *NFTables) Check() (repaired bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.nets) == 0 {
		return false, nil
	}
	if time.Since(m.uplinksRead) > uplinkInterval {
		if err := m.refreshUplinksLocked(); err != nil {
			return false, err
		}
	}
	if g := m.generation(); g != 0 && g == m.gen {
		return false, nil
	}
	whole, err := m.wholeLocked()
	if err != nil {
		return false, err
	}
	if !whole {
		m.log.Warn("nftables rules were changed by somebody else; setting them again", "table", Table)
		if err := m.rebuildLocked(); err != nil {
			return false, fmt.Errorf("set nftables rules again: %w", err)
		}
		return true, m.settleLocked()
	}
	repaired, err = m.docker.ensure(true)
	m.gen = m.generation()
	return repaired, err
}

// wholeLocked compares chains, rules and elements with the mirror, by number:
// who deletes single elements of a table that is not theirs also changes that.
func (m *NFTables) wholeLocked() (bool, error) {
	want := slices.Clone(planBase().chains)
	for _, n := range m.nets {
		want = append(want, planNetwork(n).chains...)
	}
	for a := range m.hosts {
		want = append(want, planHost(a).chains...)
	}
	got, err := m.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range want {
		if !slices.ContainsFunc(got, func(c *nftables.Chain) bool { return c.Table.Name == Table && c.Name == ch.name }) {
			return false, nil
		}
		rules, err := m.conn.GetRules(m.conn.table, &nftables.Chain{Name: ch.name, Table: m.conn.table})
		if err != nil {
			return false, fmt.Errorf("list rules of chain %s: %w", ch.name, err)
		}
		n := len(ch.rules)
		if ch.name == "guard" {
			n = len(planGuard(m.guard4, m.guard6))
		}
		if len(rules) != n {
			return false, nil
		}
	}
	if m.owned {
		return true, nil // nobody else can change an element
	}
	for name, s := range m.conn.sets {
		es, err := m.readLocked(name)
		if err != nil {
			return false, err
		}
		if countStarts(es, s.interval) != m.expectedLocked(name) {
			return false, nil
		}
	}
	return true, nil
}

// countStarts leaves out the element that the kernel adds in front of the first
// interval of a set.
func countStarts(es []nftables.SetElement, interval bool) (n int) {
	for _, e := range es {
		if interval && e.IntervalEnd && allZero(e.Key) {
			continue
		}
		n++
	}
	return n
}

func allZero(b []byte) bool { return !slices.ContainsFunc(b, func(x byte) bool { return x != 0 }) }
