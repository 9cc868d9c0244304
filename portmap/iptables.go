package portmap

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os/exec"
	"slices"
	"sync"

	"github.com/google/nftables"
)

// IPTables is the Mapper on the host's own iptables and ip6tables programs, of
// either variant, version 1.8.0 or newer: for hosts without nftables.
//
// It costs what iptables costs. A new flow is compared with one rule after the
// other, a range being one rule; a change is one process of iptables-restore a
// family, which sends the endpoint's rules at once; Check and List read whole
// tables. A change is atomic within a table (nat, filter) but not across
// tables, nor across IPv4 and IPv6: one that fails half-way is taken back.
//
// All rules are in chains PORTOLAN-*. Outside are only the jumps to them from
// the built-in chains: first in each, but in FORWARD after that to DOCKER-USER,
// where an administrator's rules come first, and last in FORWARD for Guard;
// PORTOLAN-USER is the administrator's own. The
// one thing that iptables has no word for is in the table of bridgeTable.
type IPTables struct {
	log    *slog.Logger
	settle func()

	mu    sync.Mutex // guards below
	ports *bridgeTable
	gens  *nftConn     // tells of changes where all tools write nftables; else nil
	gen   uint32       // the generation in which Check found all well; 0 is none
	tools []*iptTool   // IPv4, and IPv6 where the kernel has it
	have  []iptRuleset // what each tool's side of the kernel should hold
	iptMirror
}

// IPTablesConfig is for NewIPTables. The zero value is right for most hosts.
type IPTablesConfig struct {
	Log  *slog.Logger // nil is silent
	IPv4 string       // the program; default iptables, in PATH
	IPv6 string       // the program; default ip6tables, in PATH
	// Settle is called before a repair. It waits for whoever writes this host's
	// rules, who would find ours in the way. Nil waits for nobody.
	Settle func()
}

var _ Mapper = (*IPTables)(nil)

// NewIPTables finds the programs. Nothing in the kernel changes before Load or
// AddNetwork. The error wraps exec.ErrNotFound where a program is missing;
// ip6tables is not needed where the kernel has no IPv6.
func NewIPTables(cfg IPTablesConfig) (*IPTables, error) {
	m := &IPTables{log: orDiscard(cfg.Log), settle: cfg.Settle, iptMirror: *newIPTMirror()}
	if m.settle == nil {
		m.settle = func() {}
	}
	m.ports = newBridgeTable(m.log)
	t, err := openIPT(true, cfg.IPv4)
	if err != nil {
		return nil, err
	}
	m.tools = append(m.tools, t)
	if iptHasIPv6() {
		if t, err = openIPT(false, cfg.IPv6); err != nil {
			return nil, err
		}
		m.tools = append(m.tools, t)
	} else {
		m.log.Info("no IPv6 in the kernel: rules are for IPv4 only")
	}
	m.have = make([]iptRuleset, len(m.tools))
	if !slices.ContainsFunc(m.tools, func(t *iptTool) bool { return !t.nft }) {
		if m.gens, err = openNFT(nftables.TableFamilyINet); err != nil {
			m.log.Debug("nftables generation is not known; every check looks at all rules", "err", err)
		}
	}
	return m, nil
}

// generation is the kernel's count of changes, 0 where it does not tell: legacy
// tables have none.
func (m *IPTables) generation() uint32 {
	if m.gens == nil {
		return 0
	}
	g, err := m.gens.generation()
	if err != nil {
		return 0
	}
	return g
}

// commitLocked makes the kernel what next says, and then the mirror. After an
// error both are as they were, as near as can be. With anew, nothing is taken
// for granted about what the kernel holds.
func (m *IPTables) commitLocked(next *iptMirror, anew bool) error {
	var err error
	plans := make([]iptRuleset, len(m.tools))
	for i, t := range m.tools {
		plans[i] = iptPlan(t.is4, next)
		if anew {
			err = t.sync(plans[i])
		} else {
			err = t.change(m.have[i], plans[i])
		}
		if err == nil {
			continue
		}
		for k := range i + 1 {
			if undo := m.tools[k].sync(m.have[k]); undo != nil {
				err = errors.Join(err, fmt.Errorf("put the old rules back: %w", undo))
			}
		}
		return err
	}
	m.have, m.iptMirror = plans, *next
	return nil
}

// Load implements Mapper.
func (m *IPTables) Load(nets []Network, pubs []Publication) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := newIPTMirror()
	next.guard4, next.guard6 = m.guard4, m.guard6
	next.uplinks, next.foreign = m.uplinks, m.foreign
	for _, n := range nets {
		if err := next.addNetwork(n); err != nil {
			return err
		}
	}
	for _, p := range pubs {
		if err := next.publish(p); err != nil {
			return err
		}
	}
	next.readBridges()
	if err := m.commitLocked(next, true); err != nil {
		return fmt.Errorf("load iptables rules: %w", err)
	}
	return m.settleLocked()
}

// settleLocked follows every change of the networks. Its error leaves the rules
// as they are meant to be; Check tries the rest again.
func (m *IPTables) settleLocked() error {
	_, err := m.ports.ensure(m.closesPorts())
	return err
}

// AddNetwork implements Mapper.
func (m *IPTables) AddNetwork(n Network) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.clone()
	if err := next.addNetwork(n); err != nil {
		return err
	}
	next.readBridges()
	if err := m.commitLocked(next, false); err != nil {
		return fmt.Errorf("add network %.12s to iptables: %w", n.ID, err)
	}
	return m.settleLocked()
}

// RemoveNetwork implements Mapper. What Guard set goes with the last network
// and comes back with the next.
func (m *IPTables) RemoveNetwork(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.nets[id]; !known {
		return nil
	}
	next := m.clone()
	delete(next.nets, id)
	for ep, p := range m.pubs {
		if p.Network == id {
			next.leave(ep)
		}
	}
	if err := m.commitLocked(next, false); err != nil {
		return fmt.Errorf("remove network %.12s from iptables: %w", id, err)
	}
	return m.settleLocked()
}

// Map implements Mapper.
func (m *IPTables) Map(p Publication) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.clone()
	next.leave(p.Endpoint)
	if err := next.publish(p); err != nil {
		return err
	}
	if err := m.commitLocked(next, false); err != nil {
		return fmt.Errorf("map ports of endpoint %.12s: %w", p.Endpoint, err)
	}
	return nil
}

// Unmap implements Mapper.
func (m *IPTables) Unmap(endpoint string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.pubs[endpoint]; !known {
		return nil
	}
	next := m.clone()
	next.leave(endpoint)
	if err := m.commitLocked(next, false); err != nil {
		m.iptMirror, m.gen = *next, 0 // Check commits what m.have has too much
		return fmt.Errorf("unmap ports of endpoint %.12s: %w", endpoint, err)
	}
	return nil
}

// Guard implements Mapper.
func (m *IPTables) Guard(ipv4, ipv6 bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.clone()
	next.guard4, next.guard6 = ipv4, ipv6
	if err := m.commitLocked(next, false); err != nil {
		return fmt.Errorf("set iptables forward guard: %w", err)
	}
	return nil
}

// Guarded implements Mapper.
func (m *IPTables) Guarded() (ipv4, ipv6 bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tools {
		r, err := t.read()
		if err != nil {
			return false, false, err
		}
		if len(r[iptChain{"filter", iptPrefix + "GUARD"}]) > 0 {
			ipv4, ipv6 = ipv4 || t.is4, ipv6 || !t.is4
		}
	}
	return ipv4, ipv6, nil
}

// Check implements Mapper. It counts rules; it does not read them, as every
// version of iptables prints some of them in words of its own. It reads nothing
// where nobody has changed anything in nftables since it found all well.
func (m *IPTables) Check() (repaired bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.nets) == 0 {
		return false, nil
	}
	next := m.clone()
	next.readBridges()
	g := m.generation()
	if g != 0 && g == m.gen && slices.Equal(next.uplinks, m.uplinks) && slices.Equal(next.foreign, m.foreign) {
		return false, nil
	}
	m.gen = 0
	for i, t := range m.tools {
		have, err := t.read()
		if err != nil {
			return false, fmt.Errorf("check iptables rules: %w", err)
		}
		if len(iptJumpEdits(have, m.have[i])) > 0 || !have.ours().sameSize(m.have[i]) {
			repaired = true
		}
	}
	if repaired {
		m.settle()
	}
	if err := m.commitLocked(next, repaired); err != nil {
		return false, fmt.Errorf("repair iptables rules: %w", err)
	}
	if repaired {
		m.log.Debug("iptables rules were missing and are back", "networks", len(m.nets), "endpoints", len(m.pubs))
	}
	ports, err := m.ports.ensure(m.closesPorts())
	if !repaired && !ports && err == nil {
		m.gen = g // before looking: what changed meanwhile is seen next time
	}
	return repaired || ports, err
}

func (r iptRuleset) sameSize(other iptRuleset) bool {
	return maps.EqualFunc(r, other, func(a, b []string) bool { return len(a) == len(b) })
}

// Close implements Mapper.
func (m *IPTables) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if m.gens != nil {
		err = m.gens.CloseLasting()
	}
	return errors.Join(err, m.ports.close())
}

// CleanupIPTables removes every rule and chain of ours in both families. Where
// there is no such program, there is nothing to do.
func CleanupIPTables(cfg IPTablesConfig) error {
	var errs []error
	for _, is4 := range []bool{true, false} {
		path := cfg.IPv6
		if is4 {
			path = cfg.IPv4
		}
		t, err := openIPT(is4, path)
		if errors.Is(err, exec.ErrNotFound) || !is4 && !iptHasIPv6() {
			continue
		}
		var have iptRuleset
		if err == nil {
			have, err = t.read()
		}
		if rules, user := have[iptUser]; err == nil && (len(have.ours()) > 0 || user && len(rules) == 0) {
			orDiscard(cfg.Log).Info("remove "+t.path+" chains", "names", iptPrefix+"*")
			err = t.sync(nil)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove iptables chains %s*: %w", iptPrefix, err))
		}
	}
	return errors.Join(errs...)
}
