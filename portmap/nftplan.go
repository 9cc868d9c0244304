package portmap

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Table is the name of our nftables table, of family inet.
const Table = "portolan"

// MarkBit is the bit of the packet mark that our forward chain sets on what it
// accepts, for the one rule that lets it through Docker's DROP policy
// (DOCKER-USER, which see). No other bit is touched.
const MarkBit = 0x2000

// chainAcceptMarked is where every accept of our forward chain ends.
const chainAcceptMarked = "accept-marked"

// nftChain is a chain with all its rules; hook is nil for a regular chain.
type nftChain struct {
	name  string
	hook  *nftHook
	rules []nftRule
}

type nftHook struct {
	typ      nftables.ChainType
	num      *nftables.ChainHook
	priority nftables.ChainPriority
	text     string
}

func hook(typ nftables.ChainType, num *nftables.ChainHook, prio nftables.ChainPriority, text string) *nftHook {
	return &nftHook{typ, num, prio, fmt.Sprintf("type %s hook %s", typ, text)}
}

// nftPart is a part of the table: sets, then the chains that use them.
type nftPart struct {
	sets   []nftSet
	chains []nftChain
}

// String is the part in nft's own syntax, one statement of it a line.
func (p nftPart) String() string {
	var b strings.Builder
	for _, s := range p.sets {
		fmt.Fprintf(&b, "\t%s\n", s)
	}
	for _, c := range p.chains {
		fmt.Fprintf(&b, "\tchain %s {\n", c.name)
		if c.hook != nil {
			fmt.Fprintf(&b, "\t\t%s; policy accept;\n", c.hook.text)
		}
		for _, r := range c.rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	return b.String()
}

// The sets that are always there. Port maps are named after protocol and
// family; those of single host addresses have the address in front.
const (
	setBridges    = "bridges"     // interface names of our bridges
	setUplinks    = "uplinks"     // bridges that lead to a LAN, not to containers
	mapToBridge   = "to-bridge"   // out interface to a network's chain
	mapFromBridge = "from-bridge" // in interface to a network's chain
	mapInternal   = "internal"    // the same for internal networks, looked up first
	mapHostAddr   = "host-addr"   // host address to its chain; + family
	mapLoopback   = "loopback"    // the same for 127.0.0.0/8
	mapSource     = "source"      // subnet to a network's postrouting chain; + family
	setOpen       = "open"        // published ports of routed networks; + family
	setHostOnly   = "host-only"   // ports whose other clients are refused; + family, and ranges of a protocol by themselves
)

func famDigit(is4 bool) string {
	if is4 {
		return "4"
	}
	return "6"
}

func addrType(is4 bool) nftables.SetDatatype {
	if is4 {
		return nftables.TypeIPAddr
	}
	return nftables.TypeIP6Addr
}

// portMap is the name of the map of one protocol and family, for the wildcard
// or one host address: of ranges, or of ports each by itself.
//
// Ranges are intervals, and a kernel goes through all intervals of a set at the
// end of every transaction that changes one (nft_rbtree_commit, 6.18). So what
// needs no interval is in a hash.
func portMap(p Proto, is4 bool, host netip.Addr, single bool) string {
	name := p.String() + famDigit(is4)
	if single {
		name += "-single"
	}
	if host.IsValid() && !host.IsUnspecified() {
		name = hostChain(host) + "-" + name
	}
	return name
}

// hostChain names the chain of a host address; nft's own parser takes no colon
// in a name.
func hostChain(a netip.Addr) string {
	return "host-" + strings.ReplaceAll(a.String(), ":", "-")
}

func hostOnlyRanges(p Proto, is4 bool) string { return p.String() + famDigit(is4) + "-" + setHostOnly }

var families = [...]bool{true, false} // is4

// portMaps are the maps of one host address or of the wildcard, and the rules
// that look a packet up in them.
func portMaps(host netip.Addr, fams ...bool) (sets []nftSet, rules []nftRule) {
	for _, is4 := range fams {
		for _, p := range Protos {
			ranges, single := portMap(p, is4, host, false), portMap(p, is4, host, true)
			sets = append(sets,
				nftSet{ranges, nftables.TypeInetService, addrType(is4), true},
				nftSet{single, nftables.TypeInetService, nftables.MustConcatSetType(addrType(is4), nftables.TypeInetService), false})
			rules = append(rules,
				nftRule{stmtFamily(is4), stmtDNAT(p, is4, ranges, false)},
				nftRule{stmtFamily(is4), stmtDNAT(p, is4, single, true)})
		}
	}
	return sets, rules
}

var (
	linkLocal6 = netip.MustParsePrefix("fe80::/10")
	loopback4  = netip.MustParsePrefix("127.0.0.0/8")
	loopback6  = netip.MustParsePrefix("::1/128")
)

// planBase is what the table has before any network.
//
// NAT sees only the first packet of a flow, so its chains only dispatch. The
// chains port-forward and port-local see every packet of a published port's
// flow; they are the place of counters, limits (planLimited) and allow-lists.
func planBase() nftPart {
	verdictMap := func(name string, key nftables.SetDatatype, interval bool) nftSet {
		return nftSet{name, key, nftables.TypeVerdict, interval}
	}
	sets := []nftSet{
		{name: setBridges, key: nftables.TypeIFName},
		{name: setUplinks, key: nftables.TypeIFName},
		verdictMap(mapToBridge, nftables.TypeIFName, false),
		verdictMap(mapFromBridge, nftables.TypeIFName, false),
		verdictMap(mapInternal, nftables.TypeIFName, false),
		verdictMap(mapLoopback, nftables.TypeIPAddr, false),
	}
	var dispatch, refuse []nftRule
	for _, is4 := range families {
		sets = append(sets,
			verdictMap(mapHostAddr+famDigit(is4), addrType(is4), false),
			verdictMap(mapLimited+famDigit(is4), addrType(is4), false),
			verdictMap(mapSource+famDigit(is4), addrType(is4), true),
			nftSet{name: setOpen + famDigit(is4), key: nftables.MustConcatSetType(addrType(is4), nftables.TypeInetProto, nftables.TypeInetService)})
		dispatch = append(dispatch, nftRule{daddr(is4).vmap(mapHostAddr + famDigit(is4))})
		// With a port alone as its key this would be a bitmap, and a change of
		// that goes through all its elements (nft_bitmap_elem_find).
		single := nftSet{name: setHostOnly + famDigit(is4), key: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)}
		sets = append(sets, single)
		for _, p := range [...]Proto{TCP, UDP} {
			ranges := nftSet{name: hostOnlyRanges(p, is4), key: nftables.TypeInetService, interval: true}
			sets = append(sets, ranges)
			for _, among := range []nftStmt{stmtDportIn(p, ranges.name), stmtProtoDportIn(p, single.name)} {
				if !is4 && p == TCP {
					// The kernel looks for a reset's way without the interface, and a
					// link-local address is at the end of any; an ICMPv6 error has it.
					refuse = append(refuse, nftRule{saddr(false).in(linkLocal6), among, stmtReject(UDP)})
				}
				refuse = append(refuse, nftRule{stmtFamily(is4), among, stmtReject(p)})
			}
		}
	}
	wildcard, lookups := portMaps(netip.Addr{}, families[:]...)
	dispatch = append(dispatch, lookups...)
	onlyUnicast6 := []nftRule{
		{daddr(false).in(linkLocal6), stmtReturn},
		{saddr(false).in(linkLocal6), stmtReturn},
		{daddr(false).in(loopback6), stmtReturn},
	}
	notLocal := nftRule{stmtNotLocal(), stmtReturn}
	// A container that says it is this host: in IPv6 the kernel believes it.
	impostor := nftRule{stmtIIFIn(setBridges), stmtFromLocal(), stmtDrop}
	nat, filter := nftables.ChainTypeNAT, nftables.ChainTypeFilter
	return nftPart{append(sets, wildcard...), []nftChain{
		{name: "port-forward"},
		{name: "port-local"},
		{name: "guard"},
		{name: chainAcceptMarked, rules: []nftRule{{stmtSetMark(MarkBit), stmtAccept}}},
		{name: "dispatch", rules: dispatch},
		{"filter-prerouting", hook(filter, nftables.ChainHookPrerouting, -300, "prerouting priority raw"), []nftRule{
			{stmtNotIIF("lo"), daddr(true).in(loopback4), stmtDrop},
			// Nor is it a source: with route_localnet, the kernel takes that too.
			{stmtNotIIF("lo"), saddr(true).in(loopback4), stmtDrop},
		}},
		{"nat-prerouting", hook(nat, nftables.ChainHookPrerouting, -100, "prerouting priority dstnat"),
			slices.Concat([]nftRule{notLocal, impostor}, onlyUnicast6, []nftRule{{stmtJump("dispatch")}})},
		{"nat-output", hook(nat, nftables.ChainHookOutput, -100, "output priority -100"),
			slices.Concat([]nftRule{notLocal}, onlyUnicast6, []nftRule{{daddr(true).vmap(mapLoopback)}, {stmtJump("dispatch")}})},
		{"nat-postrouting", hook(nat, nftables.ChainHookPostrouting, 100, "postrouting priority srcnat"), []nftRule{
			{stmtOIFIn(setBridges), stmtDNATed, saddr(true).in(loopback4), stmtMasquerade},
			{saddr(true).vmap(mapSource + "4")},
			{saddr(false).vmap(mapSource + "6")},
		}},
		{"filter-forward", hook(filter, nftables.ChainHookForward, -1, "forward priority filter - 1"), []nftRule{
			{stmtIfVmap(expr.MetaKeyIIFNAME, "iifname", mapInternal)},
			{stmtIfVmap(expr.MetaKeyOIFNAME, "oifname", mapToBridge)},
			{stmtIfVmap(expr.MetaKeyIIFNAME, "iifname", mapFromBridge)},
			{stmtJump("guard")},
		}},
		{"filter-input", hook(filter, nftables.ChainHookInput, -1, "input priority filter - 1"), append([]nftRule{
			{stmtIIF("lo"), stmtAccept},
			{stmtIIFIn(setBridges), stmtDNATed, stmtJump("port-local")},
			// Answers to sockets of this host, which may well have a published port.
			{stmtEstablished, stmtAccept},
		}, refuse...)},
		{"filter-output", hook(filter, nftables.ChainHookOutput, -1, "output priority filter - 1"), []nftRule{
			// The kernel routes what was translated anew, and goes on here with the
			// interface of before: it says nothing.
			{stmtDNATed, stmtJump("port-local")},
		}},
	}}
}

// planHost is the chain of one host address and its maps.
func planHost(a netip.Addr) nftPart {
	sets, rules := portMaps(a, a.Is4())
	return nftPart{sets, []nftChain{{name: hostChain(a), rules: rules}}}
}

// The chains of a network are named after its bridge.
func chainTo(n Network) string     { return "to-" + n.Bridge }
func chainFrom(n Network) string   { return "from-" + n.Bridge }
func chainSource(n Network) string { return "source-" + n.Bridge }

// planNetwork is the chains of one network.
func planNetwork(n Network) nftPart {
	return nftPart{chains: []nftChain{
		{name: chainTo(n), rules: rulesTo(n)},
		{name: chainFrom(n), rules: rulesFrom(n)},
		{name: chainSource(n), rules: rulesSource(n)},
	}}
}

// rulesTo decides what may be forwarded into a network. Traffic from container
// to container of one network is here too, where br_netfilter shows it.
func rulesTo(n Network) []nftRule {
	accept, same := stmtAcceptMarked, stmtIIF(n.Bridge)
	if n.Internal {
		if n.NoICC {
			return []nftRule{{stmtDrop}}
		}
		return []nftRule{{same, accept}, {stmtDrop}}
	}
	rules := []nftRule{{stmtDNATed, stmtJump("port-forward")}}
	if n.NoICC {
		rules = append(rules, rulesApart(n)...)
	}
	rules = append(rules, nftRule{stmtEstablished, accept}, nftRule{stmtDNATed, accept})
	if !n.NoICC {
		rules = append(rules, nftRule{same, accept})
	}
	for _, name := range n.Trusted {
		rules = append(rules, nftRule{stmtIIF(name), accept})
	}
	for _, f := range n.families() {
		switch f.mode {
		case ModeNATUnprotected:
			rules = append(rules, nftRule{stmtFamily(f.is4), accept})
		case ModeRouted:
			rules = append(rules,
				nftRule{stmtOpenPort(f.is4, setOpen+famDigit(f.is4)), stmtJump("port-forward")},
				nftRule{stmtOpenPort(f.is4, setOpen+famDigit(f.is4)), accept},
				nftRule{stmtFamily(f.is4), stmtEcho(f.is4), accept})
		}
	}
	return append(rules, nftRule{stmtDrop})
}

// rulesApart decide what may go from container to container of a network where
// they may not talk: packets to a published port and their answers, and only
// those that NAT has sent there. Of a translated flow others are on their way to
// a client outside; with br_netfilter, a container may have addressed their
// frames to its neighbour.
func rulesApart(n Network) (rules []nftRule) {
	same := stmtIIF(n.Bridge)
	for _, f := range n.families() {
		rules = append(rules, nftRule{same, stmtDNATed, daddr(f.is4).in(f.subnet), stmtNotLocal(), stmtAcceptMarked})
	}
	return append(rules, nftRule{same, stmtDrop})
}

// rulesFrom decides what may be forwarded out of a network, to other places
// than networks of ours. Into a bridge that does not lead to a LAN it goes
// unmarked: whose containers those are has rules of its own.
func rulesFrom(n Network) []nftRule {
	if n.Internal { // before another network lets it in as a published port's
		return []nftRule{{stmtNotOIF(n.Bridge), stmtDrop}}
	}
	rules := []nftRule{
		{stmtDNATed, stmtJump("port-forward")},
		{stmtEstablished, stmtAcceptMarked},
	}
	for _, f := range n.families() {
		own := saddr(f.is4).in(f.subnet)
		rules = append(rules,
			nftRule{own, stmtOIFIsBridge(), stmtOIFNotIn(setUplinks), stmtAccept},
			nftRule{own, stmtAcceptMarked})
	}
	return append(rules, nftRule{stmtDrop})
}

// rulesSource gives traffic from a network's subnet its source address. The
// hairpin rule matches addresses, not interfaces: a bridged packet has no input
// interface in postrouting.
func rulesSource(n Network) (rules []nftRule) {
	for _, f := range n.families() {
		own := saddr(f.is4).in(f.subnet)
		rules = append(rules, nftRule{stmtDNATed, own, daddr(f.is4).in(f.subnet), stmtMasquerade})
		if n.NoMasquerade || n.Internal || f.mode == ModeRouted {
			continue
		}
		source := stmtMasquerade
		if f.snat.IsValid() {
			source = stmtSNAT(f.snat)
		}
		rules = append(rules, nftRule{own, stmtNotOIF(n.Bridge), source})
	}
	return rules
}

// planGuard is the rules of the chain guard.
func planGuard(ipv4, ipv6 bool) (rules []nftRule) {
	for _, is4 := range families {
		if (is4 && ipv4) || (!is4 && ipv6) {
			rules = append(rules, nftRule{stmtFamily(is4), stmtEstablished, stmtAccept}, nftRule{stmtFamily(is4), stmtDrop})
		}
	}
	return rules
}

// netFamily is one address family of a network.
type netFamily struct {
	is4    bool
	subnet netip.Prefix
	snat   netip.Addr
	mode   Mode
}

func (n Network) families() (fs []netFamily) {
	if n.Subnet4.IsValid() {
		fs = append(fs, netFamily{true, n.Subnet4, n.SNAT4, n.Mode4})
	}
	if n.Subnet6.IsValid() {
		fs = append(fs, netFamily{false, n.Subnet6, n.SNAT6, n.Mode6})
	}
	return fs
}
