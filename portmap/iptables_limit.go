package portmap

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// iptLimitRules are a rule for each mapping of p, which counts its flows of this
// family (Target.MaxFlows).
func iptLimitRules(is4 bool, p Publication) (rules []string) {
	for _, m := range p.limited() {
		if !p.limitedIn(m, is4) {
			continue
		}
		orig := ""
		if !m.Wildcard() {
			orig = "--ctorigdst " + netip.PrefixFrom(m.HostIP, m.HostIP.BitLen()).String() + " "
		}
		first, last := p.originalPorts(m)
		dport := strconv.Itoa(int(first))
		if first != last {
			dport += ":" + strconv.Itoa(int(last))
		}
		rules = append(rules, fmt.Sprintf("-p %s -m conntrack %s--ctorigdstport %s -m connlimit --connlimit-above %d --connlimit-mask 0 --connlimit-saddr %s-j DROP",
			m.Proto, orig, dport, p.MaxFlows, iptComment(p.Endpoint)))
	}
	return rules
}

// iptPlanLimit leads what is new to the container through the rules of its limit.
func iptPlanLimit(is4 bool, r iptRuleset, p Publication) {
	rules := iptLimitRules(is4, p)
	if p.MaxFlows <= 0 || len(rules) == 0 {
		return
	}
	chain, ip := "LIMIT-"+iptShortID(p.Endpoint), p.IPv6
	if is4 {
		ip = p.IPv4
	}
	r.add("filter", chain, rules...)
	for _, from := range []string{"PORTS", "PORTS-LOCAL"} {
		r.add("filter", from, fmt.Sprintf("-d %s -m conntrack --ctstate NEW -j %s%s", netip.PrefixFrom(ip, ip.BitLen()), iptPrefix, chain))
	}
}

// Drops implements Mapper. The numbers of both families are added.
func (m *IPTables) Drops() (ds []Drop, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pubs {
		if !p.limits() {
			continue
		}
		packets := map[Mapping]uint64{}
		for _, t := range m.tools {
			if len(iptLimitRules(t.is4, p)) == 0 {
				continue
			}
			out, err := t.run("", t.path, "-w", iptWait(), "-t", "filter", "-v", "-S", iptPrefix+"LIMIT-"+iptShortID(p.Endpoint))
			if err != nil {
				return nil, fmt.Errorf("read the limits of endpoint %.12s: %w", p.Endpoint, err)
			}
			counts := iptCounts(out)
			for _, mp := range p.limited() {
				if p.limitedIn(mp, t.is4) && len(counts) > 0 {
					packets[mp] += counts[0]
					counts = counts[1:]
				}
			}
		}
		for _, mp := range p.limited() {
			ds = append(ds, Drop{p.Endpoint, mp, packets[mp]})
		}
	}
	return ds, nil
}

// iptCounts are the packets of each rule of `iptables -v -S`.
func iptCounts(out string) (counts []uint64) {
	for line := range strings.Lines(out) {
		if _, rest, counted := strings.Cut(line, " -c "); counted {
			number, _, _ := strings.Cut(rest, " ")
			n, _ := strconv.ParseUint(number, 10, 64) // 0 for what iptables never prints
			counts = append(counts, n)
		}
	}
	return counts
}
