package portmap_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/portmap"
)

// example is the line of the README that begins so.
func example(t *testing.T, prefix string) []string {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, prefix) {
			return strings.Fields(line)
		}
	}
	require.Fail(t, "no such line in README.md", prefix)
	return nil
}

func mappings(t *testing.T, texts ...string) (all []portmap.Mapping) {
	t.Helper()
	for _, s := range texts {
		m, err := portmap.ParseMapping(s)
		require.NoError(t, err)
		all = append(all, m)
	}
	return all
}

// TestUserRules has the administrator deny one client one published port, in the
// README's words, and tries it through whatever happens to our own rules.
func TestUserRules(t *testing.T) {
	places := map[string]struct {
		example, clear string
		list           []string // fails if the place is not there
	}{
		"nftables": {"nft add rule inet portolan-user ", "nft flush chain inet portolan-user forward", []string{"nft", "list", "table", "inet", "portolan-user"}},
		"iptables": {"iptables -A PORTOLAN-USER ", "iptables -F PORTOLAN-USER", []string{"iptables", "-S", "PORTOLAN-USER"}},
	}
	for kind, place := range places {
		t.Run(kind, func(t *testing.T) {
			w := newTown(t)
			open := func() portmap.Mapper { return w.mapper }
			if kind == "iptables" {
				require.NoError(t, w.mapper.Load(nil, nil))
				open = func() portmap.Mapper { return openIPTables(t) }
			}
			m := open()
			t.Cleanup(func() { require.NoError(t, m.Load(nil, nil)) })
			nets := []portmap.Network{rigNet}
			pubs := []portmap.Publication{{Target: target("e1", 2), Mappings: mappings(t, "8080->80", "8080->80/udp", "9090->80")}}
			require.NoError(t, m.Load(nets, pubs))
			say(t, w.c2, 80, "two")
			stands := func() bool { return exec.Command(place.list[0], place.list[1:]...).Run() == nil }
			allowed := func(from *netnstest.Host, network, to string) bool {
				got, err := ask(from, network, to, answerWait)
				return err == nil && got == "two"
			}
			denied := func(when string) {
				t.Helper()
				_, err := ask(w.neighbour, "tcp", "198.51.100.1:8080", 100*time.Millisecond)
				require.Error(t, err, when)
				require.True(t, allowed(w.neighbour, "tcp", "198.51.100.1:9090"), "another port: %s", when)
				require.True(t, allowed(w.neighbour, "udp", "198.51.100.1:8080"), "another protocol: %s", when)
				require.True(t, allowed(w.c3, "tcp", "198.51.100.1:8080"), "another client: %s", when)
			}
			require.True(t, allowed(w.neighbour, "tcp", "198.51.100.1:8080"))
			command(t, example(t, place.example)...)
			denied("set")

			repaired, err := m.Check()
			require.NoError(t, err)
			require.False(t, repaired, "the administrator's rule is no drift")
			if kind == "iptables" {
				command(t, "iptables", "-F", "PORTOLAN-FORWARD")
				repaired, err = m.Check()
				require.NoError(t, err)
				require.True(t, repaired)
				denied("after a repair")
			}
			require.NoError(t, m.Map(portmap.Publication{Target: target("e2", 3), Mappings: mappings(t, "5353->53/udp")}))
			require.NoError(t, m.Unmap("e2"))
			denied("after a change")
			m = open() // a restart
			require.NoError(t, m.Load(nets, pubs))
			denied("after a restart")
			require.NoError(t, m.RemoveNetwork(rigNet.ID))
			require.True(t, stands(), "it outlives the last network")
			require.NoError(t, m.Load(nets, pubs))
			denied("with a network again")

			command(t, strings.Fields(place.clear)...)
			require.True(t, allowed(w.neighbour, "tcp", "198.51.100.1:8080"))
			require.NoError(t, m.RemoveNetwork(rigNet.ID))
			require.False(t, stands(), "empty, it goes with the last network")
		})
	}
}

// The administrator's table may be there first, with other things in it, and a
// chain that is missing is made beside them.
func TestUserTableOfTheAdministrator(t *testing.T) {
	w := newTown(t)
	command(t, "nft", "delete", "table", "inet", portmap.UserTable)
	command(t, "nft", "add", "table", "inet", portmap.UserTable)
	command(t, "nft", "add", "set", "inet", portmap.UserTable, "bad", "{ type ipv4_addr; }")
	_, err := w.mapper.Check()
	require.NoError(t, err)
	text := command(t, "nft", "list", "table", "inet", portmap.UserTable)
	require.Contains(t, text, "set bad")
	require.Contains(t, text, "type filter hook forward priority filter - 2; policy accept;")
	require.NoError(t, w.mapper.Load(nil, nil))
	require.Contains(t, command(t, "nft", "list", "table", "inet", portmap.UserTable), "set bad", "not ours to remove")
	command(t, "nft", "delete", "table", "inet", portmap.UserTable)
}

// TestCleanupLeavesUserRules removes what is empty, and nothing else.
func TestCleanupLeavesUserRules(t *testing.T) {
	w := newTown(t)
	ipt := openIPTables(t)
	require.NoError(t, ipt.Load([]portmap.Network{rigNet}, nil))
	t.Cleanup(func() { require.NoError(t, ipt.Load(nil, nil)) })
	command(t, "nft", "add", "rule", "inet", "portolan-user", "forward", "counter")
	command(t, "iptables", "-A", "PORTOLAN-USER", "-j", "RETURN")
	require.NoError(t, w.mapper.Load(nil, nil))
	require.NoError(t, portmap.Cleanup(nil))
	require.Contains(t, command(t, "nft", "list", "table", "inet", "portolan-user"), "counter")
	require.Contains(t, command(t, "iptables", "-S", "PORTOLAN-USER"), "RETURN")
	require.Error(t, exec.Command("ip6tables", "-S", "PORTOLAN-USER").Run(), "this one was empty")
	command(t, "nft", "flush", "chain", "inet", "portolan-user", "forward")
	command(t, "iptables", "-F", "PORTOLAN-USER")
	require.NoError(t, portmap.Cleanup(nil))
	require.Error(t, exec.Command("nft", "list", "table", "inet", "portolan-user").Run())
	require.Error(t, exec.Command("iptables", "-S", "PORTOLAN-USER").Run())
}
