package main

import (
	"bytes"
	"io"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRepairsAreSaidAtABoundedRate(t *testing.T) {
	var r repairs
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	said := func() int { return strings.Count(out.String(), "put back what somebody else has changed") }
	start := time.Now()
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }

	r.note(log, "bridge a", "", at(0))
	r.note(log, "rules", "nft (pid 1)", at(0))
	assert.Equal(t, 2, said())
	assert.False(t, r.fighting(at(0)), "once is no fight")
	for s := 1; s <= 100; s++ {
		r.note(log, "rules", "iptables (pid 2)", at(s))
	}
	assert.Contains(t, out.String(), `rules-changed-by="nft (pid 1)"`)
	assert.LessOrEqual(t, said(), 1+fightTimes+2, "a line a minute once it is a fight")
	assert.Contains(t, out.String(), "more-often=")
	assert.True(t, r.fighting(at(100)))
	assert.Equal(t, []string{"something else on this host changes this again and again: rules; rules were last changed by iptables (pid 2)"}, r.problems(at(100)))
	assert.NotEmpty(t, r.problems(at(150)))
	assert.Empty(t, r.problems(at(161)), "a minute of peace")
	assert.Empty(t, r.problems(at(400)))
	assert.Empty(t, r.last, "and it is forgotten")

	// Now and then is no fight either.
	for s := range 20 {
		r.note(log, "rules", "", at(1000+s*30))
	}
	assert.Empty(t, r.problems(at(1000+19*30)))
}

// A daemon notices what the kernel tells of, and puts it back.
func TestTheDaemonPutsBackABridge(t *testing.T) {
	d := startDaemon(t)
	defer d.stop(t)
	createNetwork(t, d, "keep0")
	for _, damage := range []string{
		"ip link del keep0", "ip link set keep0 down", "ip addr del 172.29.0.1/24 dev keep0", "sysctl -qw net.ipv4.conf.keep0.route_localnet=0",
	} {
		out, err := exec.Command("sh", "-c", damage).CombinedOutput()
		require.NoError(t, err, "%s: %s", damage, out)
		require.Eventually(t, func() bool {
			out, err := exec.Command("sh", "-c", "ip -br -4 addr show dev keep0 up && sysctl -n net.ipv4.conf.keep0.route_localnet").CombinedOutput()
			return err == nil && strings.Contains(string(out), "172.29.0.1/24") && strings.HasSuffix(string(out), "\n1\n")
		}, 20*time.Second, 5*time.Millisecond, "%s: %s", damage, &d.log)
	}
	assert.Contains(t, d.log.String(), "put back what somebody else has changed on this host")
}

// createNetwork asks for a network of 172.29.0.0/24 on a bridge, as an engine
// does. It is not removed: the
// rules go with the namespace.
func createNetwork(t *testing.T, d *runningDaemon, bridge string) {
	t.Helper()
	id := strings.Repeat("a", 64)
	post := func(method, body string) {
		resp, err := socketClient(d.socket).Post("http://portolan/NetworkDriver."+method, "application/json", strings.NewReader(body))
		require.NoError(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NotContains(t, string(text), "Err", method)
	}
	post("CreateNetwork", `{"NetworkID":"`+id+`","Options":{"com.docker.network.generic":{"com.docker.network.bridge.name":"`+bridge+`"}},`+
		`"IPv4Data":[{"AddressSpace":"LocalDefault","Pool":"172.29.0.0/24","Gateway":"172.29.0.1/24"}],"IPv6Data":[]}`)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", bridge).Run() })
}
