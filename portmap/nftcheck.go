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

// transactedLocked follows one transaction of ours, perhaps of nothing, which
// the kernel does not count; before is the generation before it. Whoever else
// changed something since Check looked is for the next Check to find.
func (m *NFTables) transactedLocked(before uint32) {
	g := m.generation()
	if m.gen == 0 || before != m.gen || g-before > 1 {
		g = 0
	}
	m.gen = g
}

// Check implements Mapper. It looks no further where nobody but us has changed
// anything in nftables since it looked last.
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
	g := m.generation() // before looking: what changes meanwhile is seen next time
	if g != 0 && g == m.gen && !m.stale {
		return false, nil
	}
	m.gen = 0
	whole, err := m.wholeLocked()
	if err != nil {
		return false, err
	}
	if !whole || m.stale {
		m.log.Debug("nftables rules were changed by somebody else; setting them again", "table", Table)
		if err := m.rebuildLocked(); err != nil {
			return false, fmt.Errorf("set nftables rules again: %w", err)
		}
		return true, m.settleLocked()
	}
	if repaired, err = m.outsideLocked(); !repaired && err == nil && !m.docker.waits() {
		m.gen = g
	}
	return repaired, err
}

// wholeLocked compares chains, rules and elements with the mirror, by number:
// who deletes single elements of a table that is not theirs also changes that.
func (m *NFTables) wholeLocked() (bool, error) {
	want := planBase().chains
	guard, limited := planGuard(m.guard4, m.guard6), planLimited(m.anyLimits())
	for i, c := range want {
		switch c.name {
		case "guard":
			want[i].rules = guard
		case "port-forward", "port-local":
			want[i].rules = limited
		}
	}
	for _, n := range m.nets {
		want = append(want, planNetwork(n).chains...)
	}
	for a := range m.hosts {
		want = append(want, planHost(a).chains...)
	}
	for _, p := range m.pubs {
		if p.limits() {
			want = append(want, planLimit(p).chains...)
		}
	}
	if whole, err := m.conn.hasChains(want); err != nil || !whole {
		return false, err
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

// hasChains says whether the table has the chains, each with as many rules.
func (c *nftConn) hasChains(want []nftChain) (bool, error) {
	got, err := c.ListChainsOfTableFamily(c.table.Family)
	if err != nil {
		return false, fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range want {
		if !slices.ContainsFunc(got, func(g *nftables.Chain) bool { return g.Table.Name == Table && g.Name == ch.name }) {
			return false, nil
		}
		rules, err := c.kernelRules(c.table, ch.name)
		if err != nil {
			return false, err
		}
		if len(rules) != len(ch.rules) {
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
