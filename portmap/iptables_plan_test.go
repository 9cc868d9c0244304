package portmap

import (
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	iptNet = Network{
		ID: "n", Bridge: "plbr0",
		Subnet4: netip.MustParsePrefix("172.20.0.0/16"), Gateway4: netip.MustParseAddr("172.20.0.1"),
		Subnet6: netip.MustParsePrefix("fd20::/64"), Gateway6: netip.MustParseAddr("fd20::1"),
	}
	iptTarget = Target{
		Endpoint: "3f2a91c04b7e" + strings.Repeat("0", 52), Network: "n",
		IPv4: netip.MustParseAddr("172.20.0.2"), IPv6: netip.MustParseAddr("fd20::2"),
	}
)

func iptMirrorOf(t *testing.T, nets []Network, pubs ...Publication) *iptMirror {
	t.Helper()
	m := newIPTMirror()
	for _, n := range nets {
		require.NoError(t, m.addNetwork(n))
	}
	for _, p := range pubs {
		require.NoError(t, m.publish(p))
	}
	return m
}

// TestIPTPlan has the whole of what an administrator sees of one network with
// one container.
func TestIPTPlan(t *testing.T) {
	p := Publication{iptTarget, []Mapping{
		{Proto: TCP, HostPort: 8080, HostPortEnd: 8080, Port: 80},
		{Proto: UDP, HostPort: 10000, HostPortEnd: 10999, Port: 10000},
		{Proto: UDP, HostPort: 30000, HostPortEnd: 30009, Port: 20000, HostIP: netip.MustParseAddr("198.51.100.1")},
	}}
	m := iptMirrorOf(t, []Network{iptNet}, p)
	m.foreign, m.uplinks, m.guard4 = []string{"docker+"}, []string{"br0"}, true
	comment := "-m comment --comment " + iptTarget.Endpoint
	require.Equal(t, `# filter
-N PORTOLAN-FORWARD
-A PORTOLAN-FORWARD -j PORTOLAN-USER
-A PORTOLAN-FORWARD -o plbr0 -j PORTOLAN-IN-plbr0
-A PORTOLAN-FORWARD -i plbr0 -j PORTOLAN-OUT-plbr0
# filter
-N PORTOLAN-GUARD
-A PORTOLAN-GUARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A PORTOLAN-GUARD -j DROP
# filter
-N PORTOLAN-IN-plbr0
-A PORTOLAN-IN-plbr0 -m conntrack --ctstate DNAT -j PORTOLAN-PORTS
-A PORTOLAN-IN-plbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A PORTOLAN-IN-plbr0 -m conntrack --ctstate DNAT -j ACCEPT
-A PORTOLAN-IN-plbr0 -i plbr0 -j ACCEPT
-A PORTOLAN-IN-plbr0 -j DROP
# filter
-N PORTOLAN-INPUT
-A PORTOLAN-INPUT -i lo -j RETURN
-A PORTOLAN-INPUT -i plbr0 -m conntrack --ctstate DNAT -j PORTOLAN-PORTS-LOCAL
-A PORTOLAN-INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A PORTOLAN-INPUT -i plbr0 -m addrtype --src-type LOCAL --dst-type LOCAL -j DROP
# filter
-N PORTOLAN-OUT-plbr0
-A PORTOLAN-OUT-plbr0 -m conntrack --ctstate DNAT -j PORTOLAN-PORTS
-A PORTOLAN-OUT-plbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A PORTOLAN-OUT-plbr0 -s 172.20.0.0/16 -o br0 -j ACCEPT
-A PORTOLAN-OUT-plbr0 -o docker+ -j RETURN
-A PORTOLAN-OUT-plbr0 -s 172.20.0.0/16 -j ACCEPT
-A PORTOLAN-OUT-plbr0 -j DROP
# filter
-N PORTOLAN-OUTPUT
-A PORTOLAN-OUTPUT -m conntrack --ctstate DNAT -j PORTOLAN-PORTS-LOCAL
# filter
-N PORTOLAN-PORTS
# filter
-N PORTOLAN-PORTS-LOCAL
# nat
-N PORTOLAN-DNAT
-A PORTOLAN-DNAT -j PORTOLAN-DNAT-3f2a91c04b7e
# nat
-N PORTOLAN-DNAT-3f2a91c04b7e
-A PORTOLAN-DNAT-3f2a91c04b7e -p tcp -m tcp --dport 8080 `+comment+` -j DNAT --to-destination 172.20.0.2:80
-A PORTOLAN-DNAT-3f2a91c04b7e -p udp -m udp --dport 10000:10999 `+comment+` -j DNAT --to-destination 172.20.0.2
-A PORTOLAN-DNAT-3f2a91c04b7e -d 198.51.100.1/32 -p udp -m udp --dport 30000:30009 `+comment+` -j DNAT --to-destination 172.20.0.2:20000-20009/30000
# nat
-N PORTOLAN-OUTPUT
-A PORTOLAN-OUTPUT -m addrtype --dst-type LOCAL -j PORTOLAN-DNAT
# nat
-N PORTOLAN-POSTROUTING
-A PORTOLAN-POSTROUTING -s 127.0.0.0/8 -o plbr0 -j MASQUERADE
-A PORTOLAN-POSTROUTING -s 172.20.0.0/16 -d 172.20.0.0/16 -m conntrack --ctstate DNAT -j MASQUERADE
-A PORTOLAN-POSTROUTING -s 172.20.0.0/16 ! -o plbr0 -j MASQUERADE
# nat
-N PORTOLAN-PREROUTING
-A PORTOLAN-PREROUTING -d 127.0.0.0/8 -j RETURN
-A PORTOLAN-PREROUTING -i plbr0 -m addrtype --src-type LOCAL -j RETURN
-A PORTOLAN-PREROUTING -m addrtype --dst-type LOCAL -j PORTOLAN-DNAT
# raw
-N PORTOLAN-RAW
-A PORTOLAN-RAW -d 127.0.0.0/8 ! -i lo -j DROP
-A PORTOLAN-RAW -s 127.0.0.0/8 ! -i lo -j DROP
`, iptPlan(true, m).String())
	require.Empty(t, iptPlan(true, iptMirrorOf(t, nil)), "no network, no rules")
}

// TestIPTPlanChains has, of each kind of network and mapping, the chain that it
// is about.
func TestIPTPlanChains(t *testing.T) {
	with := func(change func(*Network)) Network {
		n := iptNet
		change(&n)
		return n
	}
	only4 := iptTarget
	only4.IPv6 = netip.Addr{}
	routed := iptTarget
	routed.Routed4, routed.Routed6 = true, true
	tcp := []Mapping{{Proto: TCP, HostPort: 8080, HostPortEnd: 8080, Port: 80}}
	udpAt := func(host string) []Mapping {
		return []Mapping{{Proto: UDP, HostPort: 53, HostPortEnd: 54, Port: 1053, HostIP: netip.MustParseAddr(host)}}
	}
	comment := "-m comment --comment " + iptTarget.Endpoint
	tests := []struct {
		name         string
		net          Network
		pub          Publication
		is4          bool
		table, chain string
		want         []string // nil: no such chain
	}{
		{"internal is closed first", with(func(n *Network) { n.Internal = true }), Publication{}, true, "filter", "FORWARD", []string{
			"-j PORTOLAN-USER", "-i plbr0 ! -o plbr0 -j DROP", "! -i plbr0 -o plbr0 -j DROP", "-o plbr0 -j PORTOLAN-IN-plbr0", "-i plbr0 -j PORTOLAN-OUT-plbr0"}},
		{"internal has no NAT", with(func(n *Network) { n.Internal = true }), Publication{}, true, "nat", "POSTROUTING", []string{}},
		{"no communication", with(func(n *Network) { n.NoICC = true }), Publication{}, true, "filter", "IN-plbr0", []string{
			"-m conntrack --ctstate DNAT -j PORTOLAN-PORTS",
			"-d 172.20.0.0/16 -i plbr0 -m conntrack --ctstate DNAT -m addrtype ! --dst-type LOCAL -j MARK --set-xmark 0x2000/0x2000",
			"-d 172.20.0.0/16 -i plbr0 -m conntrack --ctstate DNAT -m addrtype ! --dst-type LOCAL -j ACCEPT", "-i plbr0 -j DROP",
			"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-m conntrack --ctstate DNAT -j ACCEPT", "-j DROP"}},
		{"no communication, internal", with(func(n *Network) { n.Internal, n.NoICC = true, true }), Publication{}, true, "filter", "IN-plbr0", []string{
			"-j DROP"}},
		{"fixed source", with(func(n *Network) { n.SNAT6 = netip.MustParseAddr("2001:db8::9") }), Publication{}, false, "nat", "POSTROUTING", []string{
			"-s fd20::/64 -d fd20::/64 -m conntrack --ctstate DNAT -j MASQUERADE", "-s fd20::/64 ! -o plbr0 -j SNAT --to-source 2001:db8::9"}},
		{"no masquerade", with(func(n *Network) { n.NoMasquerade = true }), Publication{}, true, "nat", "POSTROUTING", []string{
			"-s 127.0.0.0/8 -o plbr0 -j MASQUERADE", "-s 172.20.0.0/16 -d 172.20.0.0/16 -m conntrack --ctstate DNAT -j MASQUERADE"}},
		{"no such family", with(func(n *Network) { n.Subnet6 = netip.Prefix{} }), Publication{}, false, "filter", "OUT-plbr0", []string{
			"-m conntrack --ctstate DNAT -j PORTOLAN-PORTS", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-j DROP"}},
		{"nat-unprotected", with(func(n *Network) { n.Mode4 = ModeNATUnprotected }), Publication{}, true, "filter", "IN-plbr0", []string{
			"-m conntrack --ctstate DNAT -j PORTOLAN-PORTS", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			"-m conntrack --ctstate DNAT -j ACCEPT", "-i plbr0 -j ACCEPT", "-j ACCEPT", "-j DROP"}},
		{"routed and trusted", with(func(n *Network) { n.Mode6, n.Trusted = ModeRouted, []string{"wg0"} }), Publication{routed, tcp}, false, "filter", "IN-plbr0", []string{
			"-m conntrack --ctstate DNAT -j PORTOLAN-PORTS", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
			"-m conntrack --ctstate DNAT -j ACCEPT", "-i plbr0 -j ACCEPT", "-i wg0 -j ACCEPT",
			"-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT", "-j PORTOLAN-OPEN-3f2a91c04b7e", "-j DROP"}},
		{"routed opens container ports", iptNet, Publication{routed, tcp}, true, "filter", "OPEN-3f2a91c04b7e", []string{
			"-d 172.20.0.2/32 -p tcp -m tcp --dport 80 " + comment + " -j PORTOLAN-PORTS", "-d 172.20.0.2/32 -p tcp -m tcp --dport 80 " + comment + " -j ACCEPT"}},
		{"routed is not translated", iptNet, Publication{routed, tcp}, true, "nat", "DNAT-3f2a91c04b7e", nil},
		{"shifted range, IPv6 address", iptNet, Publication{iptTarget, udpAt("2001:db8::1")}, false, "nat", "DNAT-3f2a91c04b7e", []string{
			"-d 2001:db8::1/128 -p udp -m udp --dport 53:54 " + comment + " -j DNAT --to-destination [fd20::2]:1053-1054/53"}},
		{"IPv6 of an IPv4-only container", iptNet, Publication{only4, tcp}, false, "filter", "REFUSE-3f2a91c04b7e", []string{
			"-s fe80::/10 -p tcp -m tcp --dport 8080 " + comment + " -j REJECT --reject-with icmp6-port-unreachable",
			"-p tcp -m tcp --dport 8080 " + comment + " -j REJECT --reject-with tcp-reset"}},
		{"IPv6 wildcard of an IPv4-only container", iptNet, Publication{only4, udpAt("::")}, false, "filter", "REFUSE-3f2a91c04b7e", []string{
			"-s fe80::/10 -p udp -m udp --dport 53:54 " + comment + " -j REJECT --reject-with icmp6-port-unreachable",
			"-p udp -m udp --dport 53:54 " + comment + " -j REJECT --reject-with icmp6-port-unreachable"}},
		{"link-local clients", iptNet, Publication{iptTarget, tcp}, false, "filter", "REFUSE-3f2a91c04b7e", []string{
			"-s fe80::/10 -p tcp -m tcp --dport 8080 " + comment + " -j REJECT --reject-with icmp6-port-unreachable",
			"-d fe80::/10 -p tcp -m tcp --dport 8080 " + comment + " -j REJECT --reject-with tcp-reset"}},
		{"nobody can reach ::1", iptNet, Publication{only4, udpAt("::1")}, false, "filter", "REFUSE-3f2a91c04b7e", nil},
		{"IPv4 is carried", iptNet, Publication{iptTarget, tcp}, true, "filter", "REFUSE-3f2a91c04b7e", nil},
		{"IPv4 of an IPv6-only container", iptNet, Publication{Target{Endpoint: iptTarget.Endpoint, Network: "n", IPv6: iptTarget.IPv6}, udpAt("0.0.0.0")}, true,
			"filter", "REFUSE-3f2a91c04b7e", []string{"-p udp -m udp --dport 53:54 " + comment + " -m addrtype --dst-type LOCAL -j REJECT --reject-with icmp-port-unreachable"}},
		{"::1 is not carried", iptNet, Publication{iptTarget, udpAt("::1")}, false, "nat", "DNAT-3f2a91c04b7e", nil},
		{"link-local and ::1 are kept out of DNAT", iptNet, Publication{}, false, "nat", "OUTPUT", []string{
			"-s fe80::/10 -j RETURN", "-d fe80::/10 -j RETURN", "-d ::1/128 -j RETURN", "-m addrtype --dst-type LOCAL -j PORTOLAN-DNAT"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var pubs []Publication
			if tt.pub.Endpoint != "" {
				pubs = append(pubs, tt.pub)
			}
			rules, there := iptPlan(tt.is4, iptMirrorOf(t, []Network{tt.net}, pubs...))[iptChain{tt.table, iptPrefix + tt.chain}]
			require.Equal(t, tt.want != nil, there)
			require.Equal(t, strings.Join(tt.want, "\n"), strings.Join(rules, "\n"))
		})
	}
}

// TestIPTKernel compares the plan, word for word, with what the kernel lists.
func TestIPTKernel(t *testing.T) {
	m, err := NewIPTables(IPTablesConfig{})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, m.Load(nil, nil))
		require.NoError(t, m.Close())
	})
	nets := []Network{iptNet, {ID: "m", Bridge: "plbr1", Internal: true, NoICC: true},
		{ID: "r", Bridge: "plbr-fifteen123", Mode4: ModeRouted, Mode6: ModeRouted, Trusted: []string{"wg0"},
			Subnet4: netip.MustParsePrefix("172.21.0.0/24"), Subnet6: netip.MustParsePrefix("fd21::/64")},
		{ID: "s", Bridge: "plbr3", Subnet4: netip.MustParsePrefix("172.22.0.0/24"), SNAT4: netip.MustParseAddr("192.0.2.9"), NoICC: true}}
	routed := Target{Endpoint: "routed", Network: "r", IPv4: netip.MustParseAddr("172.21.0.9"), IPv6: netip.MustParseAddr("fd21::9"), Routed4: true, Routed6: true}
	only4 := Target{Endpoint: "only4", Network: "s", IPv4: netip.MustParseAddr("172.22.0.9")}
	only6 := Target{Endpoint: "only6", Network: "n", IPv6: netip.MustParseAddr("fd20::9")}
	require.NoError(t, m.Load(nets, []Publication{
		{iptTarget, []Mapping{
			{Proto: TCP, HostPort: 8080, HostPortEnd: 8080, Port: 80},
			{Proto: UDP, HostPort: 65000, HostPortEnd: 65535, Port: 65000},
			{Proto: SCTP, HostPort: 30000, HostPortEnd: 30009, Port: 20000, HostIP: netip.MustParseAddr("198.51.100.1")},
			{Proto: UDP, HostPort: 30000, HostPortEnd: 30009, Port: 20000, HostIP: netip.MustParseAddr("2001:db8::1")},
		}},
		{routed, []Mapping{{Proto: UDP, HostPort: 1, HostPortEnd: 9, Port: 11}}},
		{only4, []Mapping{{Proto: UDP, HostPort: 1, HostPortEnd: 9, Port: 11}, {Proto: TCP, HostPort: 1, HostPortEnd: 9, Port: 11}}},
		{only6, []Mapping{{Proto: UDP, HostPort: 11, HostPortEnd: 19, Port: 11}, {Proto: TCP, HostPort: 11, HostPortEnd: 11, Port: 11}}},
	}))
	require.NoError(t, m.Guard(true, true))
	for i, tool := range m.tools {
		have, err := tool.read()
		require.NoError(t, err)
		require.Equal(t, m.have[i].String(), have.ours().String())
	}
}

func TestIPTRestoreText(t *testing.T) {
	nat := func(name string) iptChain { return iptChain{"nat", iptPrefix + name} }
	have := iptRuleset{nat("A"): {"-j ACCEPT"}, nat("B"): {"-j DROP"}, nat("C"): {"-j RETURN"}, {"filter", "PORTOLAN-X"}: nil}
	want := iptRuleset{nat("A"): {"-j ACCEPT"}, nat("B"): {"-j ACCEPT"}, nat("D"): {"-j PORTOLAN-B"}, {"filter", "PORTOLAN-X"}: nil}
	require.Equal(t, `*nat
:PORTOLAN-B - [0:0]
:PORTOLAN-D - [0:0]
-A PORTOLAN-B -j ACCEPT
-A PORTOLAN-D -j PORTOLAN-B
-F PORTOLAN-C
-X PORTOLAN-C
COMMIT
`, iptRestoreText(have, want))
	require.Empty(t, iptRestoreText(want, want))
	require.Empty(t, iptRestoreText(nil, nil))
	require.Equal(t, "*filter\n-F PORTOLAN-X\n-X PORTOLAN-X\nCOMMIT\n", iptRestoreText(iptRuleset{{"filter", "PORTOLAN-X"}: {"-j DROP"}}, nil))
}

// TestIPTJumpEdits applies the edits to a list of rules as iptables would.
func TestIPTJumpEdits(t *testing.T) {
	const ours, user, guard, other = "-j PORTOLAN-FORWARD", "-j DOCKER-USER", "-j PORTOLAN-GUARD", "-j OTHER"
	tests := []struct {
		name       string
		have, want []string
	}{
		{"empty", nil, []string{ours, guard}},
		{"first", []string{other}, []string{ours, other, guard}},
		{"after the user's chain", []string{user, other}, []string{user, ours, other, guard}},
		{"right already", []string{user, ours, other, guard}, []string{user, ours, other, guard}},
		{"no user's chain, wherever", []string{other, ours, guard}, []string{other, ours, guard}},
		{"the user's chain came later", []string{user, other, ours, guard}, []string{user, ours, other, guard}},
		{"the user's chain is behind", []string{ours, user, other, guard}, []string{user, ours, other, guard}},
		{"twice", []string{ours, user, ours, guard}, []string{user, ours, guard}},
		{"twice, before and after", []string{ours, other, user, other, ours}, []string{other, user, ours, other, guard}},
		{"the guard is not last", []string{ours, guard, user, other}, []string{user, ours, other, guard}},
		{"the guard twice", []string{ours, guard, other, guard}, []string{ours, other, guard}},
		{"the user's chain twice", []string{user, other, user}, []string{user, ours, other, user, guard}},
	}
	chain := iptChain{"filter", "FORWARD"}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := iptRuleset{{"filter", "PORTOLAN-FORWARD"}: nil, {"filter", "PORTOLAN-GUARD"}: nil}
			rules := iptApply(tt.have, iptJumpEdits(iptRuleset{chain: tt.have}, want))
			require.Equal(t, tt.want, rules)
			require.Empty(t, iptJumpEdits(iptRuleset{chain: rules}, want))
			for _, rule := range iptApply(rules, iptJumpEdits(iptRuleset{chain: rules}, nil)) {
				require.NotContains(t, rule, iptPrefix)
			}
		})
	}
}

func iptApply(rules []string, edits []iptJumpEdit) []string {
	rules = append([]string{}, rules...)
	for _, e := range edits {
		rule := "-j " + e.jump.to
		at := e.pos - 1
		switch e.pos {
		case 0:
			at = iptPositions(rules, e.jump.to)[0] - 1
			rules = append(rules[:at], rules[at+1:]...)
			continue
		case -1:
			at = len(rules)
		}
		rules = append(rules[:at], append([]string{rule}, rules[at:]...)...)
	}
	return rules
}

func TestIPTParse(t *testing.T) {
	tests := []struct {
		rule string
		is4  bool
		want string
	}{
		{"-p tcp -m tcp --dport 8080 -m comment --comment ep -j DNAT --to-destination 172.20.0.2:80", true, "0.0.0.0:8080->80"},
		{"-p udp -m udp --dport 1:9 -m comment --comment ep -j DNAT --to-destination fd20::2", false, "[::]:1-9->1-9/udp"},
		{`-d 192.0.2.1/32 -p sctp -m sctp --dport 1:9 -m comment --comment "ep" -j DNAT --to-destination 172.20.0.2:11-19/1`, true, "192.0.2.1:1-9->11-19/sctp"},
		{"-p tcp -m tcp --dport 8080 -m comment --comment ep -j DNAT --to-destination [fd20::2]:80", false, "[::]:8080->80"},
	}
	for _, tt := range tests {
		pubs := map[string]*Publication{}
		require.NoError(t, iptParseInto(pubs, tt.is4, tt.rule))
		require.Contains(t, pubs, "ep")
		require.Len(t, pubs["ep"].Mappings, 1)
		require.Equal(t, tt.want, pubs["ep"].Mappings[0].String())
	}
	for _, bad := range []string{
		"", "-j RETURN", "-p 47 -j DNAT --to-destination 172.20.0.2",
		"-p tcp -m tcp --dport 99999 -j DNAT --to-destination 172.20.0.2",
		"-d x -p tcp -m tcp --dport 9 -j DNAT --to-destination 172.20.0.2",
		"-p tcp -m tcp --dport 9 -j DNAT --to-destination nowhere:80",
		"-p tcp -m tcp --dport 9 -j DNAT --to-destination 172.20.0.2:x",
	} {
		require.Error(t, iptParseInto(map[string]*Publication{}, true, bad), "%q", bad)
	}
}

func TestIPTError(t *testing.T) {
	tool := &iptTool{is4: true, path: "iptables", run: new(iptRunner).run}
	err := tool.restore("*nat\n-A PORTOLAN-NOWHERE -j ACCEPT\nCOMMIT\n")
	var e *IPTablesError
	require.ErrorAs(t, err, &e)
	require.NotEmpty(t, e.Stderr)
	require.NotContains(t, e.Stderr, "\n")
	require.ErrorContains(t, err, "iptables-restore --noflush")

	require.ErrorIs(t, newIPTError([]string{"iptables"}, "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)\n", nil), syscall.EPERM)
	require.ErrorIs(t, newIPTError([]string{"iptables"}, "Another app is currently holding the xtables lock.", nil), syscall.EAGAIN)

	_, err = new(iptRunner).run("", "/nowhere/iptables")
	require.ErrorIs(t, err, syscall.ENOENT)
	_, err = new(iptRunner).run("", "false")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
}

// TestIPTUndo has one family's program fail: what the other took is taken back.
func TestIPTUndo(t *testing.T) {
	m, err := NewIPTables(IPTablesConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Load(nil, nil)) })
	require.NoError(t, m.Load([]Network{iptNet}, []Publication{{iptTarget, []Mapping{{Proto: TCP, HostPort: 8080, HostPortEnd: 8080, Port: 80}}}}))
	before, err := m.List()
	require.NoError(t, err)

	fails := true
	m.tools[1].run = func(stdin string, args ...string) (string, error) {
		if fails && strings.Contains(stdin, "9090") {
			return "", newIPTError(args, "No space left on device", syscall.ENOSPC)
		}
		return new(iptRunner).run(stdin, args...)
	}
	next := Publication{iptTarget, []Mapping{{Proto: TCP, HostPort: 9090, HostPortEnd: 9090, Port: 80}}}
	require.ErrorIs(t, m.Map(next), syscall.ENOSPC)
	after, err := m.List()
	require.NoError(t, err)
	require.Equal(t, before, after)
	repaired, err := m.Check()
	require.NoError(t, err)
	require.False(t, repaired)

	fails = false
	require.NoError(t, m.Map(next))
	after, err = m.List()
	require.NoError(t, err)
	require.Equal(t, "9090->80", after[0].Mappings[0].String())
}
