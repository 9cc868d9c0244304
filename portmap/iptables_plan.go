package portmap

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// iptPrefix begins the name of every chain of ours. A name has at most 28
// letters, an interface's 15.
const iptPrefix = "PORTOLAN-"

// iptChain is a chain of one family's rules.
type iptChain struct{ table, name string }

// iptRuleset is our chains of one family with their rules, each as `iptables
// -S` prints it, without "-A" and the chain's name.
type iptRuleset map[iptChain][]string

func (r iptRuleset) add(table, name string, rules ...string) {
	c := iptChain{table, iptPrefix + name}
	r[c] = append(r[c], rules...)
}

// String is the rules as `iptables -S` prints them, by table and chain.
func (r iptRuleset) String() string {
	var b strings.Builder
	for _, c := range r.chains() {
		fmt.Fprintf(&b, "# %s\n-N %s\n", c.table, c.name)
		for _, rule := range r[c] {
			fmt.Fprintf(&b, "-A %s %s\n", c.name, rule)
		}
	}
	return b.String()
}

func (r iptRuleset) chains() []iptChain {
	return slices.SortedFunc(maps.Keys(r), func(a, b iptChain) int {
		return cmp.Or(cmp.Compare(a.table, b.table), cmp.Compare(a.name, b.name))
	})
}

// iptJump is the rule of a built-in chain that leads to a chain of ours.
type iptJump struct{ table, from, to string }

// iptJumps are all that there can be; one is wanted if its chain is.
var iptJumps = [...]iptJump{
	{"raw", "PREROUTING", iptPrefix + "RAW"},
	{"nat", "PREROUTING", iptPrefix + "PREROUTING"},
	{"nat", "OUTPUT", iptPrefix + "OUTPUT"},
	{"nat", "POSTROUTING", iptPrefix + "POSTROUTING"},
	{"filter", "INPUT", iptPrefix + "INPUT"},
	{"filter", "OUTPUT", iptPrefix + "OUTPUT"},
	{"filter", "FORWARD", iptPrefix + "FORWARD"},
	{"filter", "FORWARD", iptPrefix + "GUARD"},
}

func (r iptRuleset) wants(j iptJump) bool {
	_, ok := r[iptChain{j.table, j.to}]
	return ok
}

const (
	iptDNATed      = "-m conntrack --ctstate DNAT "
	iptEstablished = "-m conntrack --ctstate RELATED,ESTABLISHED "
	iptFromLocal   = "-m addrtype --src-type LOCAL " // as stmtFromLocal
)

// iptPlan is all of our rules of one family: nothing without a network.
func iptPlan(is4 bool, m *iptMirror) iptRuleset {
	r := iptRuleset{}
	if len(m.nets) == 0 {
		return r
	}
	nets := slices.SortedFunc(maps.Values(m.nets), func(a, b Network) int { return cmp.Compare(a.ID, b.ID) })
	iptPlanBase(is4, r, nets)
	// An internal network is closed before anything else may accept.
	for _, n := range nets {
		if n.Internal {
			r.add("filter", "FORWARD",
				fmt.Sprintf("-i %s ! -o %s -j DROP", n.Bridge, n.Bridge),
				fmt.Sprintf("! -i %s -o %s -j DROP", n.Bridge, n.Bridge))
		}
	}
	for _, n := range nets {
		r.add("filter", "FORWARD", fmt.Sprintf("-o %s -j %sIN-%s", n.Bridge, iptPrefix, n.Bridge))
	}
	for _, n := range nets {
		r.add("filter", "FORWARD", fmt.Sprintf("-i %s -j %sOUT-%s", n.Bridge, iptPrefix, n.Bridge))
		iptPlanNetwork(is4, r, n, m)
	}
	// Every packet to this host passes INPUT; what was let in once is not looked
	// at again.
	r.add("filter", "INPUT", iptEstablished+"-j RETURN")
	for _, n := range nets {
		r.add("filter", "INPUT", fmt.Sprintf("-i %s %s--dst-type LOCAL -j DROP", n.Bridge, iptFromLocal))
	}
	pubs := slices.SortedFunc(maps.Values(m.pubs), func(a, b Publication) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
	for _, p := range pubs {
		iptPlanEndpoint(is4, r, p, m.nets[p.Network])
	}
	for _, n := range nets { // last: whatever is not open by then is closed
		r.add("filter", "IN-"+n.Bridge, "-j DROP")
	}
	if (is4 && m.guard4) || (!is4 && m.guard6) {
		r.add("filter", "GUARD", iptEstablished+"-j ACCEPT", "-j DROP")
	}
	return r
}

// iptPlanBase is what is there for all networks together.
func iptPlanBase(is4 bool, r iptRuleset, nets []Network) {
	if is4 {
		// The bridges have route_localnet, so that localhost may be translated
		// to them; nobody else may speak to 127.0.0.0/8.
		r.add("raw", "RAW", "-d 127.0.0.0/8 ! -i lo -j DROP", "-s 127.0.0.0/8 ! -i lo -j DROP")
		r.add("nat", "PREROUTING", "-d 127.0.0.0/8 -j RETURN")
		r.add("nat", "OUTPUT")
	} else {
		for _, chain := range []string{"PREROUTING", "OUTPUT"} {
			r.add("nat", chain, "-s fe80::/10 -j RETURN", "-d fe80::/10 -j RETURN", "-d ::1/128 -j RETURN")
		}
	}
	// A container that says it is this host gets no further than INPUT.
	for _, n := range nets {
		r.add("nat", "PREROUTING", fmt.Sprintf("-i %s %s-j RETURN", n.Bridge, iptFromLocal))
	}
	for _, chain := range []string{"PREROUTING", "OUTPUT"} {
		r.add("nat", chain, "-m addrtype --dst-type LOCAL -j "+iptPrefix+"DNAT")
	}
	r.add("nat", "DNAT")
	r.add("nat", "POSTROUTING")
	r.add("filter", "FORWARD", "-j "+iptUser.name)
	// By no interface: after its translation the kernel goes on here with that of before.
	r.add("filter", "OUTPUT", iptDNATed+"-j "+iptPrefix+"PORTS-LOCAL")
	r.add("filter", "INPUT", "-i lo -j RETURN")
	// The place of counters, limits and allow-lists: NAT sees only the first
	// packet of a flow, these see all of them.
	r.add("filter", "PORTS")
	r.add("filter", "PORTS-LOCAL")
}

// iptPlanNetwork is a network's rules, but for the last one of its chain IN.
func iptPlanNetwork(is4 bool, r iptRuleset, n Network, m *iptMirror) {
	subnet, snat, mode := n.Subnet6, n.SNAT6, n.Mode6
	echo := "-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT"
	if is4 {
		subnet, snat, mode = n.Subnet4, n.SNAT4, n.Mode4
		echo = "-p icmp -m icmp --icmp-type 8 -j ACCEPT"
	}
	in, out := "IN-"+n.Bridge, "OUT-"+n.Bridge
	same := "-i " + n.Bridge + " "
	if n.Internal {
		if !n.NoICC {
			r.add("filter", in, same+"-j ACCEPT")
		}
		r.add("filter", out, "-j DROP")
		return
	}

	toPorts := "-j " + iptPrefix + "PORTS"
	r.add("filter", in, iptDNATed+toPorts)
	if n.NoICC { // as rulesApart; the mark is for the table of planBridge
		if subnet.IsValid() {
			sent := fmt.Sprintf("-d %s %s%s-m addrtype ! --dst-type LOCAL ", subnet.Masked(), same, iptDNATed)
			r.add("filter", in, sent+fmt.Sprintf("-j MARK --set-xmark 0x%x/0x%x", MarkBit, MarkBit), sent+"-j ACCEPT")
		}
		r.add("filter", in, same+"-j DROP")
	}
	r.add("filter", in, iptEstablished+"-j ACCEPT", iptDNATed+"-j ACCEPT")
	if !n.NoICC {
		r.add("filter", in, same+"-j ACCEPT")
	}
	for _, name := range n.Trusted {
		r.add("filter", in, fmt.Sprintf("-i %s -j ACCEPT", name))
	}
	switch mode {
	case ModeNATUnprotected:
		r.add("filter", in, "-j ACCEPT")
	case ModeRouted:
		r.add("filter", in, echo)
	}

	// Into the bridge of another driver nothing is accepted here: whose
	// containers those are has rules of its own.
	r.add("filter", out, iptDNATed+toPorts, iptEstablished+"-j ACCEPT")
	if subnet.IsValid() {
		for _, name := range m.uplinks {
			r.add("filter", out, fmt.Sprintf("-s %s -o %s -j ACCEPT", subnet.Masked(), name))
		}
		for _, name := range m.foreign {
			r.add("filter", out, fmt.Sprintf("-o %s -j RETURN", name))
		}
		r.add("filter", out, fmt.Sprintf("-s %s -j ACCEPT", subnet.Masked()))
	}
	r.add("filter", out, "-j DROP")

	r.add("filter", "INPUT", fmt.Sprintf("-i %s %s%s-LOCAL", n.Bridge, iptDNATed, toPorts))

	if is4 {
		r.add("nat", "POSTROUTING", fmt.Sprintf("-s 127.0.0.0/8 -o %s -j MASQUERADE", n.Bridge))
	}
	if !subnet.IsValid() {
		return
	}
	// Hairpin, by addresses: a bridged packet has no input interface here.
	r.add("nat", "POSTROUTING", fmt.Sprintf("-s %s -d %s %s-j MASQUERADE", subnet.Masked(), subnet.Masked(), iptDNATed))
	if n.NoMasquerade || mode == ModeRouted {
		return
	}
	source := "MASQUERADE"
	if snat.IsValid() {
		source = "SNAT --to-source " + snat.String()
	}
	r.add("nat", "POSTROUTING", fmt.Sprintf("-s %s ! -o %s -j %s", subnet.Masked(), n.Bridge, source))
}
