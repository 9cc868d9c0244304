package portmap_test

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
)

// An administrator's `iptables -A` stands behind the engine's RETURN, where it
// does nothing; our rule stays before it.
func TestDockerUserBeforeReturn(t *testing.T) {
	iptables := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("iptables", append([]string{"-w"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	iptables("-N", portmap.DockerUserChain)
	iptables("-A", portmap.DockerUserChain, "-j", "RETURN")
	t.Cleanup(func() {
		iptables("-F", portmap.DockerUserChain)
		iptables("-X", portmap.DockerUserChain)
	})
	m := openNFTables(t)
	require.NoError(t, m.AddNetwork(portmap.Network{ID: "n1", Bridge: "plbr9", Subnet4: netip.MustParsePrefix("10.9.0.0/24")}))
	t.Cleanup(func() { assert.NoError(t, m.Close()) })

	order := func() (words []string) {
		for line := range strings.Lines(iptables("-S", portmap.DockerUserChain)) {
			switch {
			case strings.Contains(line, "--mark 0x2000"):
				words = append(words, "ours")
			case strings.HasPrefix(line, "-A"):
				f := strings.Fields(line)
				words = append(words, f[len(f)-1])
			}
		}
		return words
	}
	check := func(want ...string) {
		t.Helper()
		_, err := m.Check()
		require.NoError(t, err)
		assert.Equal(t, want, order())
	}
	check("ours", "RETURN")
	iptables("-A", portmap.DockerUserChain, "-s", "203.0.113.9", "-j", "DROP")
	check("ours", "RETURN", "DROP")
	iptables("-D", portmap.DockerUserChain, "-s", "203.0.113.9", "-j", "DROP")
	check("ours", "RETURN")
	iptables("-I", portmap.DockerUserChain, "-s", "203.0.113.9", "-j", "DROP")
	check("DROP", "ours", "RETURN")
	iptables("-F", portmap.DockerUserChain)
	check("ours")
	iptables("-F", portmap.DockerUserChain)
	require.NoError(t, m.Map(portmap.Publication{
		Target:   portmap.Target{Endpoint: "e1", Network: "n1", IPv4: netip.MustParseAddr("10.9.0.2")},
		Mappings: portmaptest.Mappings(t, "8080->80"),
	}), "a change of ours does not hide that of somebody else")
	check("ours")
	iptables("-A", portmap.DockerUserChain, "-s", "203.0.113.9", "-j", "DROP")
	check("DROP", "ours")
	require.NoError(t, m.RemoveNetwork("n1"))
	assert.Equal(t, []string{"DROP"}, order())
}

// Rules that google/nftables cannot read, or of which it leaves out the
// condition, are the administrator's all the same.
func TestDockerUserRulesOfNFT(t *testing.T) {
	nft := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("nft", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	nft("add", "table", "ip", "filter")
	t.Cleanup(func() { nft("delete", "table", "ip", "filter") })
	nft("add", "chain", "ip", "filter", portmap.DockerUserChain)
	rules := []string{"ct original ip daddr 203.0.113.7 drop", "ipsec in reqid 7 return", "ct reply ip saddr 203.0.113.8 drop"}
	for _, r := range rules {
		nft("add", "rule", "ip", "filter", portmap.DockerUserChain, r)
	}
	m := openNFTables(t)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	require.NoError(t, m.AddNetwork(portmap.Network{ID: "n1", Bridge: "plbr9", Subnet4: netip.MustParsePrefix("10.9.0.0/24")}))
	list := func() (rules []string) {
		for line := range strings.Lines(nft("list", "chain", "ip", "filter", portmap.DockerUserChain)) {
			if line = strings.TrimSpace(line); strings.Contains(line, "accept") {
				rules = append(rules, "ours")
			} else if strings.HasSuffix(line, "drop") || strings.HasSuffix(line, "return") {
				rules = append(rules, line)
			}
		}
		return rules
	}
	assert.Equal(t, append(rules, "ours"), list())
	nft("add", "rule", "ip", "filter", portmap.DockerUserChain, rules[0])
	_, err := m.Check()
	require.NoError(t, err)
	assert.Equal(t, append(rules, rules[0], "ours"), list())
	require.NoError(t, m.RemoveNetwork("n1"))
	assert.Equal(t, append(rules, rules[0]), list())
}

// iptables-persistent saves our rule and restores it as one of iptables' own.
func TestDockerUserRuleOfIPTablesRestore(t *testing.T) {
	iptables := func(script string) string {
		t.Helper()
		out, err := exec.Command("sh", "-ec", script).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	iptables("iptables -w -N DOCKER-USER; iptables -w -A DOCKER-USER -j RETURN")
	t.Cleanup(func() { iptables("iptables -w -F DOCKER-USER; iptables -w -X DOCKER-USER") })
	m := openNFTables(t)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	require.NoError(t, m.AddNetwork(portmap.Network{ID: "n1", Bridge: "plbr9", Subnet4: netip.MustParsePrefix("10.9.0.0/24")}))
	marks := func() int { return strings.Count(iptables("iptables -w -S DOCKER-USER"), "--mark 0x2000") }
	require.Equal(t, 1, marks())
	iptables("saved=$(iptables-save -t filter); echo \"$saved\" | iptables-restore")
	_, err := m.Check()
	require.NoError(t, err)
	assert.Equal(t, 1, marks(), "one of them")
	iptables("saved=$(iptables-save -t filter); echo \"$saved\" | iptables-restore")
	require.NoError(t, m.RemoveNetwork("n1"))
	assert.Zero(t, marks(), "nothing left")
}

// A flush of the table takes the way from FORWARD to the chain along and leaves
// the policy DROP, which would keep other hosts out.
func TestWayToDockerUser(t *testing.T) {
	iptables := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("iptables", append([]string{"-w"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	way := func() string {
		for line := range strings.Lines(iptables("-S", "FORWARD")) {
			if strings.HasPrefix(line, "-A") {
				return strings.TrimSpace(line)
			}
		}
		return ""
	}
	iptables("-P", "FORWARD", "DROP")
	iptables("-N", portmap.DockerUserChain)
	t.Cleanup(func() { iptables("-F"); iptables("-X"); iptables("-P", "FORWARD", "ACCEPT") })
	m := openNFTables(t)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	require.NoError(t, m.AddNetwork(portmap.Network{ID: "n1", Bridge: "plbr9", Subnet4: netip.MustParsePrefix("10.9.0.0/24")}))
	_, err := m.Check()
	require.NoError(t, err)
	assert.Empty(t, way(), "Docker's has not been seen")

	iptables("-I", "FORWARD", "-j", portmap.DockerUserChain)
	_, err = m.Check()
	require.NoError(t, err)
	iptables("-F")
	require.Empty(t, way())
	_, err = m.Check()
	require.NoError(t, err)
	assert.Empty(t, way(), "the engine may be at it")
	repairs := func() bool { repaired, err := m.Check(); return err == nil && repaired }
	require.Eventually(t, repairs, 20*time.Second, 50*time.Millisecond)
	assert.Equal(t, "-A FORWARD -j "+portmap.DockerUserChain, way())
	assert.Contains(t, iptables("-S", portmap.DockerUserChain), "--mark 0x2000/0x2000")
	iptables("-C", "FORWARD", "-j", portmap.DockerUserChain) // as Docker looks for it
	assert.False(t, repairs())

	// The chain itself, too.
	iptables("-F")
	iptables("-X", portmap.DockerUserChain)
	require.Eventually(t, repairs, 20*time.Second, 50*time.Millisecond)
	assert.Equal(t, "-A FORWARD -j "+portmap.DockerUserChain, way())
	assert.Contains(t, iptables("-S", portmap.DockerUserChain), "--mark 0x2000/0x2000")

	// Where nothing is dropped, nothing is needed.
	iptables("-F")
	iptables("-X", portmap.DockerUserChain)
	iptables("-P", "FORWARD", "ACCEPT")
	_, err = m.Check()
	require.NoError(t, err)
	assert.Empty(t, way())
}
