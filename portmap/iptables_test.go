package portmap_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
)

func openIPTables(t *testing.T) portmap.Mapper {
	m, err := portmap.NewIPTables(portmap.IPTablesConfig{})
	require.NoError(t, err)
	return m
}

func TestIPTablesMapper(t *testing.T) { portmaptest.TestMapper(t, openIPTables) }

func TestIPTablesTraffic(t *testing.T) { portmaptest.TestTraffic(t, openIPTables) }

// TestIPTablesLegacyMapper is the contract with the other variant, whose rules
// are in tables of their own.
func TestIPTablesLegacyMapper(t *testing.T) {
	portmaptest.TestMapper(t, func(t *testing.T) portmap.Mapper {
		m, err := portmap.NewIPTables(portmap.IPTablesConfig{IPv4: "iptables-legacy", IPv6: "ip6tables-legacy"})
		require.NoError(t, err)
		return m
	})
}

func TestIPTablesMissing(t *testing.T) {
	for _, cfg := range []portmap.IPTablesConfig{
		{IPv4: "/nowhere/iptables"},
		{IPv6: "/nowhere/ip6tables"},
	} {
		_, err := portmap.NewIPTables(cfg)
		require.Error(t, err)
		require.ErrorContains(t, err, "/nowhere/")
	}
	t.Setenv("PATH", t.TempDir())
	_, err := portmap.NewIPTables(portmap.IPTablesConfig{})
	require.ErrorIs(t, err, exec.ErrNotFound)
	require.NoError(t, portmap.CleanupIPTables(portmap.IPTablesConfig{}), "no program, nothing to do")
}

func TestIPTablesTooOld(t *testing.T) {
	old := filepath.Join(t.TempDir(), "iptables")
	require.NoError(t, os.WriteFile(old, []byte("#!/bin/sh\necho iptables v1.6.1\n"), 0o755))
	_, err := portmap.NewIPTables(portmap.IPTablesConfig{IPv4: old})
	require.ErrorContains(t, err, "1.8.0")
}

// TestCleanupIPTables removes what a daemon left that is gone, and only that.
func TestCleanupIPTables(t *testing.T) {
	iptCommand(t, "nft", "flush", "ruleset")
	t.Cleanup(func() { iptCommand(t, "nft", "flush", "ruleset") })
	iptCommand(t, "iptables", "-N", "DOCKER-USER")
	iptCommand(t, "iptables", "-A", "FORWARD", "-j", "DOCKER-USER")
	iptCommand(t, "iptables", "-A", "FORWARD", "-s", "192.0.2.1", "-j", "DROP")
	clean := iptRules(t)

	m := openIPTables(t)
	require.NoError(t, m.AddNetwork(portmap.Network{ID: "n", Bridge: "plbr0"}))
	require.NoError(t, m.Guard(true, true))
	require.NoError(t, m.Map(iptPublication(t, "8080->80")))
	require.NoError(t, m.Close())
	require.Contains(t, iptRules(t), "PORTOLAN-")
	// A jump that an older layout may have left.
	iptCommand(t, "iptables", "-I", "FORWARD", "-j", "PORTOLAN-FORWARD")

	require.NoError(t, portmap.CleanupIPTables(portmap.IPTablesConfig{}))
	require.Equal(t, clean, iptRules(t))
	require.NoError(t, portmap.CleanupIPTables(portmap.IPTablesConfig{}), "again")
	require.Equal(t, clean, iptRules(t))
}

// TestIPTablesCheck takes single things away behind the mapper's back.
func TestIPTablesCheck(t *testing.T) {
	iptCommand(t, "nft", "flush", "ruleset")
	t.Cleanup(func() { iptCommand(t, "nft", "flush", "ruleset") })
	m := openIPTables(t)
	require.NoError(t, m.AddNetwork(portmap.Network{ID: "n", Bridge: "plbr0"}))
	require.NoError(t, m.Guard(true, false))
	require.NoError(t, m.Map(iptPublication(t, "8080->80", "53->53/udp")))
	whole := iptRules(t)
	damage := []string{
		"iptables -F PORTOLAN-FORWARD",
		"iptables -D FORWARD -j PORTOLAN-FORWARD",
		"iptables -I FORWARD -j PORTOLAN-FORWARD",
		"iptables -D FORWARD -j PORTOLAN-GUARD",
		"iptables -t nat -D PREROUTING -j PORTOLAN-PREROUTING",
		"ip6tables -t nat -D OUTPUT -j PORTOLAN-OUTPUT",
		"iptables -t raw -F PORTOLAN-RAW",
		"iptables -t raw -F",
		"iptables -A PORTOLAN-IN-plbr0 -j ACCEPT",
		"iptables -D PORTOLAN-IN-plbr0 -j DROP",
		"ip6tables -F INPUT",
		"iptables -N PORTOLAN-OLD",
	}
	for _, d := range damage {
		t.Run(d, func(t *testing.T) {
			iptCommand(t, strings.Fields(d)...)
			require.NotEqual(t, whole, iptRules(t))
			repaired, err := m.Check()
			require.NoError(t, err)
			assert.True(t, repaired)
			require.Equal(t, whole, iptRules(t))
			repaired, err = m.Check()
			require.NoError(t, err)
			require.False(t, repaired)
		})
	}
}

// The guard stands for a policy: rules that others append, as ufw and who restores
// Docker's own do, count before it.
func TestIPTablesGuardIsLast(t *testing.T) {
	iptCommand(t, "nft", "flush", "ruleset")
	t.Cleanup(func() { iptCommand(t, "nft", "flush", "ruleset") })
	m := openIPTables(t)
	require.NoError(t, m.AddNetwork(portmap.Network{ID: "n", Bridge: "plbr0"}))
	require.NoError(t, m.Guard(true, true))
	for _, tool := range []string{"iptables", "ip6tables"} {
		iptCommand(t, tool, "-A", "FORWARD", "-i", "docker0", "-j", "ACCEPT")
		repaired, err := m.Check()
		require.NoError(t, err)
		require.True(t, repaired)
		out, err := exec.Command(tool, "-S", "FORWARD").Output()
		require.NoError(t, err)
		require.Regexp(t, `-A FORWARD -i docker0 -j ACCEPT\n-A FORWARD -j PORTOLAN-GUARD\n$`, string(out))
		require.Equal(t, 1, strings.Count(string(out), "PORTOLAN-GUARD"))
		repaired, err = m.Check()
		require.NoError(t, err)
		require.False(t, repaired)
	}
}

// TestIPTablesUnmapFails: what cannot be removed now is gone with the next Check,
// or with the next change.
func TestIPTablesUnmapFails(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	for _, name := range []string{"iptables", "iptables-restore"} {
		real, err := exec.LookPath(name)
		require.NoError(t, err)
		script := fmt.Sprintf("#!/bin/sh\n[ ! -e %s ] || exit 4\nexec %s \"$@\"\n", broken, real)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755))
	}
	m, err := portmap.NewIPTables(portmap.IPTablesConfig{IPv4: filepath.Join(dir, "iptables")})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, errors.Join(m.Load(nil, nil), m.Close())) })
	require.NoError(t, m.AddNetwork(portmap.Network{ID: "n", Bridge: "plbr0"}))
	for _, next := range []func() error{
		func() error { _, err := m.Check(); return err },
		func() error {
			return m.Map(portmap.Publication{Target: portmap.Target{Endpoint: "other", Network: "n"}})
		},
	} {
		require.NoError(t, m.Map(iptPublication(t, "8080->80")))
		_, err = m.Check()
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(broken, nil, 0o600))
		require.Error(t, m.Unmap("ep"))
		require.NoError(t, os.Remove(broken))
		require.Contains(t, iptCommand(t, "iptables", "-t", "nat", "-S"), "--dport 8080")
		require.NoError(t, next())
		require.NotContains(t, iptRules(t), "--dport 8080")
	}
}

// TestIPTablesRefused gives names that would be something else in a rule.
func TestIPTablesRefused(t *testing.T) {
	m := openIPTables(t)
	for _, bridge := range []string{"", "pl br", "pl+", "a-very-long-name", "pl\nbr", `pl"br`} {
		require.Error(t, m.AddNetwork(portmap.Network{ID: "n", Bridge: bridge}), "bridge %q", bridge)
	}
	require.Error(t, m.AddNetwork(portmap.Network{ID: "n", Bridge: "plbr0", Trusted: []string{"eth+"}}))
	require.NoError(t, m.AddNetwork(portmap.Network{ID: "n", Bridge: "plbr0"}))
	t.Cleanup(func() { require.NoError(t, m.RemoveNetwork("n")) })
	for _, endpoint := range []string{"", "a b", "a\nb"} {
		p := iptPublication(t, "8080->80")
		p.Endpoint = endpoint
		require.Error(t, m.Map(p), "endpoint %q", endpoint)
	}
	for name, bad := range map[string]portmap.Mapping{
		"no protocol":              {HostPort: 1, HostPortEnd: 1, Port: 1},
		"no host port":             {Proto: portmap.TCP, Port: 1},
		"reversed":                 {Proto: portmap.TCP, HostPort: 2, HostPortEnd: 1, Port: 1},
		"container ports past end": {Proto: portmap.TCP, HostPort: 1, HostPortEnd: 2, Port: 65535},
	} {
		p := iptPublication(t)
		p.Mappings = []portmap.Mapping{bad}
		require.Error(t, m.Map(p), name)
	}
	require.ErrorIs(t, m.Map(iptPublication(t, "80->80", "80->81")), portmap.ErrPortInUse, "twice in one publication")
	listed, err := m.List()
	require.NoError(t, err)
	require.Empty(t, listed)
}

func iptPublication(t *testing.T, notation ...string) portmap.Publication {
	return portmap.Publication{
		Target:   portmap.Target{Endpoint: "ep", Network: "n", IPv4: netip.MustParseAddr("172.20.0.2"), IPv6: netip.MustParseAddr("fd20::2")},
		Mappings: portmaptest.Mappings(t, notation...),
	}
}

// iptRules are all rules of the namespace, those of the first tables that a
// listing makes included.
func iptRules(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, tool := range []string{"iptables", "ip6tables"} {
		for _, table := range []string{"raw", "nat", "filter"} {
			all.WriteString(iptCommand(t, tool, "-t", table, "-S"))
		}
	}
	return all.String()
}

func iptCommand(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s: %s", strings.Join(args, " "), out)
	return string(out)
}
