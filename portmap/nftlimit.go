package portmap

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// MaxFlowsLimit is the largest Target.MaxFlows. The kernel looks every counted
// entry up again for each new flow (nf_conncount): near the limit a new flow
// costs 7 µs at 1,000 and 150 µs at 10,000.
const MaxFlowsLimit = 10_000

// Drop is how many packets a mapping's limit (Target.MaxFlows) has dropped since
// its rules were made: a change of what the endpoint publishes, and a start of
// the daemon, make them anew.
type Drop struct {
	Endpoint string
	Mapping  Mapping
	Packets  uint64
}

// mapLimited sends what is new to a container whose ports have a limit to the
// chain of its endpoint; + family.
const mapLimited = "limited"

// limits says whether p's flows in the kernel are counted.
func (p Publication) limits() bool { return p.MaxFlows > 0 && len(p.limited()) > 0 }

// limited are p's mappings that the kernel carries, in one family at least.
func (p Publication) limited() (ms []Mapping) {
	for _, m := range p.Mappings {
		if p.limitedIn(m, true) || p.limitedIn(m, false) {
			ms = append(ms, m)
		}
	}
	return ms
}

func (p Publication) limitedIn(m Mapping, is4 bool) bool {
	if is4 {
		return p.NAT4(m) || p.Routed4 && p.IPv4.IsValid() && m.Is4()
	}
	return p.NAT6(m) || p.Routed6 && p.IPv6.IsValid() && m.Is6()
}

func chainLimit(endpoint string) string { return "limit-" + endpoint }

// planLimited is the rules of port-forward and port-local where any port has a
// limit; elsewhere they have none, and no packet pays for it.
func planLimited(some bool) (rules []nftRule) {
	if !some {
		return nil
	}
	for _, is4 := range families {
		rules = append(rules, nftRule{stmtNew, daddr(is4).vmap(mapLimited + famDigit(is4))})
	}
	return rules
}

// planLimit is the chain of an endpoint whose ports have a limit: a rule for
// each mapping, which counts the flows of both families together.
func planLimit(p Publication) nftPart {
	return nftPart{chains: []nftChain{{name: chainLimit(p.Endpoint), rules: rulesLimit(p)}}}
}

func rulesLimit(p Publication) (rules []nftRule) {
	for _, m := range p.limited() {
		var rule nftRule
		switch {
		case !m.Wildcard():
			rule = append(rule, stmtOrigDaddr(m.HostIP))
		case m.HostIP.IsValid():
			rule = append(rule, stmtFamily(m.HostIP.Is4()))
		}
		rule = append(rule, stmtL4(m.Proto), stmtOrigDport(p.originalPorts(m)), stmtCountOver(p.MaxFlows), stmtCounter, stmtDrop)
		rules = append(rules, rule)
	}
	return rules
}

// originalPorts are the destination ports of m that a client used: of a routed
// family the container's. Where only one family is routed, those are open in
// that one and the host's in the other; they are counted together if they are
// the same, and the host's alone if not.
func (p Publication) originalPorts(m Mapping) (first, last uint16) {
	if p.NAT4(m) || p.NAT6(m) {
		return m.HostPort, m.HostPortEnd
	}
	return m.Port, m.PortEnd()
}

// limitElements lead to the chain of planLimit.
func limitElements(p Publication) (es []nftElem) {
	if !p.limits() {
		return nil
	}
	for _, is4 := range families {
		ip := p.IPv6
		if is4 {
			ip = p.IPv4
		}
		in := func(m Mapping) bool { return p.limitedIn(m, is4) }
		if slices.ContainsFunc(p.Mappings, in) {
			es = append(es, nftElem{set: mapLimited + famDigit(is4), key: string(ip.AsSlice()), chain: chainLimit(p.Endpoint)})
		}
	}
	return es
}

var (
	stmtNew     = ctMatch(expr.CtKeySTATE, ctNew, "ct state new")
	stmtCounter = nftStmt{"counter", []expr.Any{&expr.Counter{}}}
)

// stmtCountOver matches a flow that is one more than n. The kernel counts those
// that have come here.
func stmtCountOver(n int) nftStmt {
	return nftStmt{fmt.Sprintf("ct count over %d", n), []expr.Any{
		&expr.Connlimit{Count: uint32(n), Flags: expr.NFT_CONNLIMIT_F_INV}}}
}

// stmtOrigDport matches the destination port that a client used.
func stmtOrigDport(first, last uint16) nftStmt {
	load := &expr.Ct{Key: expr.CtKeyPROTODST, Register: 1, Direction: 0}
	if first == last {
		return nftStmt{fmt.Sprintf("ct original proto-dst %d", first), []expr.Any{
			load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: port(first)}}}
	}
	return nftStmt{fmt.Sprintf("ct original proto-dst %d-%d", first, last), []expr.Any{
		load, &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: port(first), ToData: port(last)}}}
}

// stmtOrigDaddr matches the destination address that a client used.
func stmtOrigDaddr(a netip.Addr) nftStmt {
	word := "ip6"
	if a.Is4() {
		word = "ip"
	}
	return nftStmt{fmt.Sprintf("ct original %s daddr %s", word, a), append(stmtFamily(a.Is4()).exprs,
		&expr.Ct{Key: expr.CtKeyDST, Register: 1, Direction: 0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})}
}

// anyLimits says whether any port has a limit.
func (m *mirror) anyLimits() bool {
	for _, p := range m.pubs {
		if p.limits() {
			return true
		}
	}
	return false
}

// relimitLocked queues what takes an endpoint's chain from old to p, whose
// elements come after it and have gone before. some says whether there were limits
// before. A chain that stays as it is goes on counting.
func (m *NFTables) relimitLocked(old, p Publication, some bool) (remove func()) {
	if now := m.anyLimits(); now != some {
		for _, name := range [...]string{"port-forward", "port-local"} {
			m.conn.FlushChain(&nftables.Chain{Name: name, Table: m.conn.table})
			m.conn.addRules(name, planLimited(now))
		}
	}
	remove = func() {}
	switch had, has := old.limits(), p.limits(); {
	case had && has && planLimit(old).String() == planLimit(p).String():
	case had && has && old.Endpoint == p.Endpoint:
		m.conn.FlushChain(&nftables.Chain{Name: chainLimit(p.Endpoint), Table: m.conn.table})
		m.conn.addRules(chainLimit(p.Endpoint), rulesLimit(p))
	case has:
		_ = m.conn.add(planLimit(p)) // it has no sets, which alone can fail
	case had:
		remove = func() { m.conn.remove(planLimit(old)) }
	}
	return remove
}

// Drops implements Mapper.
func (m *NFTables) Drops() (ds []Drop, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pubs {
		if !p.limits() {
			continue
		}
		rules, err := m.conn.kernelRules(m.conn.table, chainLimit(p.Endpoint))
		if err != nil {
			return nil, err
		}
		limited := p.limited()
		if len(rules) != len(limited) {
			continue // somebody else has changed them, and Check puts them back
		}
		for i, r := range rules {
			ds = append(ds, Drop{p.Endpoint, limited[i], r.packets()})
		}
	}
	return ds, nil
}
