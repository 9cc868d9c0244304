package portmap

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/netnstest"
)

var update = flag.Bool("update", false, "rewrite the rulesets under docs/rules")

// scenario is one ruleset of docs/rules.
type scenario struct {
	name, about    string
	nets           []Network
	pubs           []Publication
	guard4, guard6 bool
}

func scenarios() []scenario {
	dual := Network{
		ID: "n", Bridge: "plbr0",
		Subnet4: netip.MustParsePrefix("172.20.0.0/16"), Gateway4: addr("172.20.0.1"),
		Subnet6: netip.MustParsePrefix("fd20::/64"), Gateway6: addr("fd20::1"),
	}
	single := Network{ID: "s", Bridge: "plbr1", Subnet4: netip.MustParsePrefix("172.21.0.0/24"), Gateway4: addr("172.21.0.1")}
	web := Target{Endpoint: "web", Network: "n", IPv4: addr("172.20.0.2"), IPv6: addr("fd20::2")}
	dns := Target{Endpoint: "dns", Network: "s", IPv4: addr("172.21.0.2")}
	with := func(n Network, change func(*Network)) Network { change(&n); return n }

	internal := with(dual, func(n *Network) { n.Internal = true })
	closed := with(single, func(n *Network) { n.NoICC, n.NoMasquerade = true, true })
	routed := with(dual, func(n *Network) { n.Mode4, n.Mode6 = ModeRouted, ModeRouted })
	open := with(dual, func(n *Network) {
		n.Mode4, n.Trusted, n.SNAT4, n.SNAT6 = ModeNATUnprotected, []string{"wg0", "eth1"}, addr("192.0.2.9"), addr("2001:db8::9")
	})
	routedWeb, remoteDNS, limitedWeb, limitedDNS := web, dns, web, dns
	limitedWeb.MaxFlows, limitedDNS.MaxFlows = 1000, 200
	routedWeb.Routed4, routedWeb.Routed6 = true, true
	remoteDNS.ProxyRemote = true
	everywhere := []Mapping{
		one(TCP, "", 8080, 80), one(TCP, "", 443, 443), ports(UDP, "", 10000, 10999, 10000), ports(UDP, "", 65000, 65535, 65000),
		ports(UDP, "", 2000, 2002, 3000), one(SCTP, "", 5000, 5000), one(TCP, "0.0.0.0", 81, 81), one(TCP, "::", 82, 82),
	}
	return []scenario{
		{name: "network", about: "a network with both families, nothing published", nets: []Network{dual}},
		{name: "everywhere", about: "ports on every host address: equal ranges, to the last port too, and shifted ones",
			nets: []Network{dual}, pubs: []Publication{{web, everywhere}}},
		{name: "addresses", about: "ports on single host addresses, loopback ones included", nets: []Network{dual}, pubs: []Publication{{web, []Mapping{
			one(TCP, "198.51.100.1", 443, 443), ports(TCP, "198.51.100.1", 8000, 8001, 80), one(UDP, "127.0.0.1", 53, 53),
			ports(UDP, "2001:db8::1", 53, 54, 53), one(TCP, "::1", 8080, 80),
		}}}},
		{name: "ipv4-only", about: "a container without IPv6: its ports are refused to IPv6 clients of other hosts",
			nets: []Network{single}, pubs: []Publication{{dns, []Mapping{one(UDP, "", 53, 53), one(TCP, "", 53, 53)}}}},
		{name: "ipv4-only-proxy-remote", about: "the same, with IPv6 clients of other hosts let in",
			nets: []Network{single}, pubs: []Publication{{remoteDNS, []Mapping{one(UDP, "", 53, 53), one(TCP, "", 53, 53)}}}},
		{name: "max-flows", about: "a limit of conntrack entries for each mapping, and a container without", nets: []Network{dual, single},
			pubs: []Publication{
				{limitedWeb, []Mapping{one(TCP, "", 8080, 80), ports(UDP, "", 10000, 10999, 10000), one(TCP, "198.51.100.1", 443, 443), one(TCP, "::", 82, 82)}},
				{limitedDNS, []Mapping{one(UDP, "", 53, 53)}},
				{Target{Endpoint: "db", Network: "s", IPv4: addr("172.21.0.3")}, []Mapping{one(TCP, "", 5432, 5432)}},
			}},
		{name: "internal", about: "an internal network", nets: []Network{internal}},
		{name: "closed", about: "no communication between containers, no masquerade", nets: []Network{closed}},
		{name: "routed", about: "gateway mode routed: published ports are open at the container's own address",
			nets: []Network{routed}, pubs: []Publication{{routedWeb, []Mapping{one(TCP, "", 8080, 80), ports(UDP, "", 53, 54, 53)}}}},
		{name: "unprotected", about: "gateway mode nat-unprotected in IPv4, trusted interfaces, a fixed source address", nets: []Network{open}},
		{name: "two-networks", about: "two networks, and the guard of a host whose forwarding Portolan turned on",
			nets: []Network{dual, single}, pubs: []Publication{{web, everywhere[:1]}, {dns, []Mapping{one(UDP, "", 53, 53)}}}, guard4: true, guard6: true},
	}
}

// parts are what the table is made of.
func (s scenario) parts() []nftPart {
	base := planBase()
	i := slices.IndexFunc(base.chains, func(c nftChain) bool { return c.name == "guard" })
	base.chains[i].rules = planGuard(s.guard4, s.guard6)
	parts := []nftPart{base}
	for _, n := range s.nets {
		parts = append(parts, planNetwork(n))
	}
	for _, a := range s.hosts() {
		parts = append(parts, planHost(a))
	}
	some := false
	for _, p := range s.pubs {
		if p.limits() {
			some, parts = true, append(parts, planLimit(p))
		}
	}
	for i, c := range base.chains {
		if c.name == "port-forward" || c.name == "port-local" {
			base.chains[i].rules = planLimited(some)
		}
	}
	return parts
}

func (s scenario) hosts() (addrs []netip.Addr) {
	for _, p := range s.pubs {
		addrs = append(addrs, hostMaps(p)...)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

func (s scenario) elements() (es []nftElem) {
	for _, n := range s.nets {
		es = append(es, networkElements(n)...)
	}
	for _, a := range s.hosts() {
		es = append(es, hostElement(a))
	}
	for _, p := range s.pubs {
		es = append(es, elements(p)...)
	}
	return es
}

// String is the table as a file for `nft -f`.
func (s scenario) String() string {
	bySet := map[string][]nftElem{}
	for _, e := range s.elements() {
		bySet[e.set] = append(bySet[e.set], e)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s.\n# Written by `go test ./portmap -update`.\n", strings.ToUpper(s.about[:1])+s.about[1:])
	if len(s.pubs) > 0 {
		b.WriteString("#\n")
	}
	for _, p := range s.pubs {
		for _, m := range p.Mappings {
			fmt.Fprintf(&b, "# %s: %s\n", p.Endpoint, m)
		}
	}
	fmt.Fprintf(&b, "table inet %s {\n", Table)
	for _, part := range s.parts() {
		for _, set := range part.sets {
			fmt.Fprintf(&b, "\t%s\n", setText(set, bySet[set.name]))
		}
	}
	for _, part := range s.parts() {
		b.WriteString(nftPart{chains: part.chains}.String())
	}
	b.WriteString("}\n")
	if s.closesPorts() {
		fmt.Fprintf(&b, "table bridge %s {\n%s}\n", Table, planBridge())
	}
	return b.String()
}

// closesPorts says whether the scenario has the table of family bridge.
func (s scenario) closesPorts() bool {
	return slices.ContainsFunc(s.nets, func(n Network) bool { return n.NoICC })
}

func setText(s nftSet, es []nftElem) string {
	text := s.String()
	if len(es) == 0 {
		return text
	}
	words := make([]string, len(es))
	for i, e := range es {
		words[i] = elemText(s, e)
	}
	return strings.TrimSuffix(text, "}") + "elements = {\n\t\t" + strings.Join(words, ",\n\t\t") + "\n\t} }"
}

// elemText is an element in nft's own words.
func elemText(s nftSet, e nftElem) string {
	text := keyText(s, e.key)
	if s.interval {
		if last := intervalEnd(e, len(e.key)); last != e.key {
			text += "-" + keyText(s, last)
		}
	}
	if e.comment != "" {
		text += fmt.Sprintf(" comment %q", e.comment)
	}
	switch v := []byte(e.val); {
	case e.chain != "":
		text += " : jump " + e.chain
	case len(v)%16 == 4 && len(v) > 4, len(v) == 8: // address and port
		text += fmt.Sprintf(" : %s . %d", addrText(v[:len(v)-4]), binary.BigEndian.Uint16(v[len(v)-4:]))
	case len(v) > 0:
		text += " : " + addrText(v)
	}
	return text
}

func intervalEnd(e nftElem, size int) string {
	b := []byte(e.end)
	if e.end == "" {
		return strings.Repeat("\xff", size)
	}
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			break
		}
	}
	return string(b)
}

func keyText(s nftSet, key string) string {
	b := []byte(key)
	switch s.key.Name {
	case nftables.TypeIFName.Name:
		return fmt.Sprintf("%q", strings.TrimRight(key, "\x00"))
	case nftables.TypeInetService.Name:
		return fmt.Sprint(binary.BigEndian.Uint16(b))
	case nftables.TypeIPAddr.Name, nftables.TypeIP6Addr.Name:
		return addrText(b)
	}
	n := len(b) - 8
	text := fmt.Sprintf("%s . %d", Proto(b[n]), binary.BigEndian.Uint16(b[n+4:]))
	if n > 0 {
		text = addrText(b[:n]) + " . " + text
	}
	return text
}

func addrText(b []byte) string {
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}

// TestRulesets compares the plans with docs/rules, and has nft read those.
func TestRulesets(t *testing.T) {
	dir := filepath.Join("..", "docs", "rules")
	var names []string
	for _, s := range scenarios() {
		names = append(names, s.name+".nft")
		t.Run(s.name, func(t *testing.T) {
			file := filepath.Join(dir, s.name+".nft")
			if *update {
				require.NoError(t, os.MkdirAll(dir, 0o755))
				require.NoError(t, os.WriteFile(file, []byte(s.String()), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), s.String(), "go test ./portmap -update rewrites it")
			out, err := exec.Command("nft", "-c", "-f", file).CombinedOutput()
			require.NoError(t, err, "nft: %s", out)
		})
	}
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, f := range files {
		require.Contains(t, names, f.Name(), "a ruleset without a scenario")
	}
}

// TestRulesetsInKernel compares what the mapper sets with the plan, and with
// what nft makes of the same text: the same sets with as many elements, the same
// chains with as many rules.
func TestRulesetsInKernel(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			m, err := NewNFTables(nil)
			require.NoError(t, err)
			t.Cleanup(func() {
				assert.NoError(t, m.Load(nil, nil))
				assert.NoError(t, m.Guard(false, false))
				assert.NoError(t, m.Close())
			})
			require.NoError(t, m.Guard(s.guard4, s.guard6))
			require.NoError(t, m.Load(s.nets, s.pubs))
			ours := kernelShape(t)

			want := map[string]int{}
			sets := map[string]nftSet{}
			for _, p := range s.parts() {
				for _, c := range p.chains {
					want["chain "+c.name] = len(c.rules)
				}
				for _, set := range p.sets {
					sets[set.name] = set
					want["set "+set.name] = 0
				}
			}
			for _, e := range s.elements() {
				want["set "+e.set] += len(e.raw(sets[e.set].interval))
			}
			if s.closesPorts() {
				for _, c := range planBridge().chains {
					want["bridge chain "+c.name] = len(c.rules)
				}
			}
			require.Equal(t, want, ours)

			host := netnstest.NewHost(t)
			require.NoError(t, host.Do(func() error {
				cmd := exec.Command("nft", "-f", "-")
				cmd.Stdin = strings.NewReader(s.String())
				out, err := cmd.CombinedOutput()
				require.NoError(t, err, "%s", out)
				theirs := kernelShape(t)
				for name, n := range theirs {
					if strings.Contains(name, "chain ") {
						require.Equal(t, ours[name], n, name)
					}
				}
				require.Len(t, theirs, len(ours))
				return nil
			}))
		})
	}
}

// kernelShape counts the rules of each chain and the elements of each set of our
// tables, in the namespace of the calling thread.
func kernelShape(t *testing.T) map[string]int {
	t.Helper()
	c, err := openNFT(nftables.TableFamilyINet)
	require.NoError(t, err)
	defer func() { require.NoError(t, c.CloseLasting()) }()
	table := c.table
	shape := map[string]int{}
	for prefix, family := range map[string]nftables.TableFamily{"chain ": table.Family, "bridge chain ": nftables.TableFamilyBridge} {
		chains, err := c.ListChainsOfTableFamily(family)
		require.NoError(t, err)
		for _, ch := range chains {
			if ch.Table.Name != Table {
				continue
			}
			rules, err := c.kernelRules(ch.Table, ch.Name)
			require.NoError(t, err)
			shape[prefix+ch.Name] = len(rules)
		}
	}
	sets, err := c.GetSets(table)
	require.NoError(t, err)
	for _, s := range sets {
		es, err := c.GetSetElements(s)
		require.NoError(t, err)
		shape["set "+s.Name] = countStarts(es, s.Interval)
	}
	return shape
}
