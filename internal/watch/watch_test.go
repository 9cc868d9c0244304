package watch

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func opened(t *testing.T) *Watcher {
	t.Helper()
	goleak.VerifyNone(t)
	w, err := Open(Config{})
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, w.Close())
		assert.NoError(t, w.Close(), "again")
		goleak.VerifyNone(t)
	})
	return w
}

func run(t *testing.T, line string) {
	t.Helper()
	args := strings.Fields(line)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s: %s", line, out)
}

// toggle changes forwarding, whatever it was, of which the kernel tells once.
func toggle(t *testing.T) {
	t.Helper()
	const file = "/proc/sys/net/ipv4/conf/lo/forwarding"
	was, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte{'0' + '1' - was[0]}, 0o644))
}

// heard is all that the Watcher hears until it is what is wanted. What the kernel
// tells of is in order, within each of the two sockets.
func (w *Watcher) heard(t *testing.T, want func(Change) bool) Change {
	t.Helper()
	var all Change
	deadline := time.After(20 * time.Second)
	for !want(all) {
		select {
		case <-w.Told():
		case <-deadline:
			require.Fail(t, "not heard", "%+v", all)
		}
		c := w.Take()
		all.Links, all.Forward, all.Rules = all.Links || c.Links, all.Forward || c.Forward, all.Rules || c.Rules
		if c.RulesBy != "" {
			all.RulesBy = c.RulesBy
		}
	}
	return all
}

// hush hears all that there is to hear by now.
func (w *Watcher) hush(t *testing.T) {
	t.Helper()
	toggle(t)
	w.heard(t, func(c Change) bool { return c.Forward })
}

func TestWatcherHearsOfLinks(t *testing.T) {
	run(t, "ip link add other0 type bridge")
	run(t, "ip link add ours0 type bridge")
	run(t, "ip link set ours0 alias ours_bridge")
	run(t, "ip link add port0 type veth peer name port1")
	run(t, "ip link set port0 alias ours_port")
	run(t, "ip link add theirs0 type veth peer name theirs1")
	run(t, "ip link set theirs0 master other0")
	t.Cleanup(func() {
		for _, name := range []string{"other0", "ours0", "port0", "theirs0"} {
			_ = exec.Command("ip", "link", "del", name).Run()
		}
	})
	w, err := Open(Config{Alias: "ours_", Port: "port"})
	require.NoError(t, err)
	defer w.Close()
	links := func(c Change) bool { return c.Links }
	for _, line := range []string{
		"ip link set ours0 up", "ip link set ours0 down", "ip link set port0 master ours0",
		"bridge link set dev port0 hairpin on", "ip link set port0 nomaster",
		"ip addr add 192.0.2.1/24 dev ours0", "ip addr del 192.0.2.1/24 dev ours0", "ip link set ours0 address 02:42:00:00:00:01",
		"ip link del port0", "ip link del ours0",
	} {
		w.hush(t)
		run(t, line)
		w.heard(t, links)
	}
	// Other people's interfaces are not looked at.
	w.hush(t)
	run(t, "ip link set other0 type bridge stp_state 1")
	run(t, "ip link set other0 mtu 1400")
	run(t, "bridge link set dev theirs0 hairpin on")
	toggle(t)
	c := w.heard(t, func(c Change) bool { return c.Forward })
	assert.False(t, c.Links, "an interface without the alias")
	assert.False(t, c.Rules, "not asked for")
}

func TestWatcherHearsOfRules(t *testing.T) {
	w := opened(t)
	run(t, "nft add table inet silent")
	toggle(t)
	c := w.heard(t, func(c Change) bool { return c.Forward })
	assert.False(t, c.Rules, "not asked for")

	require.NoError(t, w.HearRules(true))
	require.NoError(t, w.HearRules(true))
	// Ten thousand elements, and one message.
	file := filepath.Join(t.TempDir(), "rules")
	var text strings.Builder
	text.WriteString("add table inet heap\nadd set inet heap s { type inet_service; }\nadd element inet heap s {")
	for i := range 10000 {
		fmt.Fprintf(&text, " %d,", i+1)
	}
	text.WriteString(" 10001 }\n")
	require.NoError(t, os.WriteFile(file, []byte(text.String()), 0o600))
	run(t, "nft -f "+file)
	c = w.heard(t, func(c Change) bool { return c.Rules })
	assert.Regexp(t, `^nft \(pid \d+\)$`, c.RulesBy)
	assert.False(t, c.Links, "the socket did not overflow")

	own, err := nftables.New()
	require.NoError(t, err)
	own.DelTable(&nftables.Table{Name: "heap", Family: nftables.TableFamilyINet})
	require.NoError(t, own.Flush())
	c = w.heard(t, func(c Change) bool { return c.Rules })
	assert.Empty(t, c.RulesBy, "this process")

	require.NoError(t, w.HearRules(false))
	run(t, "nft flush ruleset")
	toggle(t)
	c = w.heard(t, func(c Change) bool { return c.Forward })
	assert.False(t, c.Rules, "not any more")
}
