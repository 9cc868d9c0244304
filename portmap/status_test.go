package portmap_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/proxy"
)

// numbers are those of a mapping, by name and reason.
func numbers(t *testing.T, p *portmap.Publisher, mapping string) map[string]int {
	t.Helper()
	st, err := p.Status()
	require.NoError(t, err)
	for _, m := range st.Mappings {
		if m.Mapping.String() == mapping {
			return byName(m.Samples)
		}
	}
	require.Fail(t, "not published", mapping)
	return nil
}

func byName(samples []proxy.Sample) map[string]int {
	all := map[string]int{}
	for _, s := range samples {
		name := s.Name
		if s.Reason != "" {
			name += " " + s.Reason
		}
		all[name] = int(s.Value)
	}
	return all
}

// TestStatus counts, of a port by itself and of one among many, what went
// through the proxy.
func TestStatus(t *testing.T) {
	t.Setenv("PORTOLAN_HOOKS", "off") // which take [::1] past the proxy
	ranges := openRanges(t)
	w := newTownWith(t, ranges)
	say(t, w.c2, 53, "two")
	say(t, w.c2, 7000, "two")
	w.publish(t, "s1", only4(target("e1", 2)), "53:53/udp", "18053:53", "7000-9999:7000-9999/udp", "7000-9999:7000-9999")
	for range 2 {
		requireSays(t, here{}, "two", "[::1]:7000")
	}
	got, err := ask(here{}, "udp", "[::1]:53", answerWait)
	require.NoError(t, err)
	require.Equal(t, "two", got)
	_, err = ask(here{}, "tcp", "[::1]:7001", answerWait)
	require.ErrorIs(t, err, unix.ECONNRESET, "nobody listens")

	require.Equal(t, map[string]int{"portolan_proxy_flows": 1, "portolan_proxy_flows_total": 1}, numbers(t, w.Publisher, "53->53/udp"))
	require.Empty(t, numbers(t, w.Publisher, "18053->53"))
	require.Equal(t, map[string]int{"portolan_proxy_flows": 2, "portolan_proxy_flows_total": 2}, numbers(t, w.Publisher, "7000-9999->7000-9999/udp"))
	require.Eventually(t, func() bool {
		return assert.ObjectsAreEqual(map[string]int{
			"portolan_proxy_connections_total":                         3,
			"portolan_proxy_connections_refused_total backend refused": 1,
		}, numbers(t, w.Publisher, "7000-9999->7000-9999"))
	}, answerWait, time.Millisecond)

	st, err := w.Status()
	require.NoError(t, err)
	host := byName(st.Host)
	require.NotZero(t, host["portolan_proxy_open_files"])
	require.NotZero(t, host["portolan_proxy_open_files_limit"])
	require.NotZero(t, host["portolan_conntrack_entries"])
	require.NotZero(t, host["portolan_conntrack_entries_limit"])

	// Who publishes anew begins at zero.
	require.NoError(t, w.Release("s1"))
	w.publish(t, "s1", only4(target("e1", 2)), "53:53/udp")
	require.Empty(t, numbers(t, w.Publisher, "53->53/udp"))
}

// TestDrain lets a connection through the proxy end, refuses the next, and
// resets what has not ended in time.
func TestDrain(t *testing.T) {
	t.Setenv("PORTOLAN_HOOKS", "off")
	w := newTownWith(t, openRanges(t))
	say(t, w.c2, 80, "two")
	say(t, w.c2, 7000, "two")
	w.publish(t, "s1", only4(target("e1", 2)), "18080:80", "7000-9999:7000-9999")
	dial := func(to string) net.Conn {
		c, err := net.Dial("tcp", to)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	first, second := dial("[::1]:18080"), dial("[::1]:7000")
	require.Eventually(t, func() bool {
		return numbers(t, w.Publisher, "18080->80")["portolan_proxy_connections"] == 1 &&
			numbers(t, w.Publisher, "7000-9999->7000-9999")["portolan_proxy_connections"] == 1
	}, answerWait, time.Millisecond)

	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan struct{})
	go func() { defer close(drained); w.Drain(ctx) }()
	for _, to := range []string{"[::1]:18080", "[::1]:7000"} {
		require.Eventually(t, func() bool {
			c, err := net.Dial("tcp", to)
			if err == nil {
				_ = c.Close()
			}
			return err != nil
		}, answerWait, time.Millisecond, "new connections to %s are refused", to)
	}
	require.Equal(t, "two", answerOf(t, first))
	require.Equal(t, "two", answerOf(t, second), "what is under way goes on")
	_ = first.Close()
	_ = second.Close()
	select {
	case <-drained:
	case <-time.After(answerWait):
		require.Fail(t, "still waiting for connections that have ended")
	}
	cancel()

	// What has not ended in time is reset.
	require.NoError(t, w.Release("s1"))
	w.publish(t, "s2", only4(target("e1", 2)), "18080:80")
	third := dial("[::1]:18080")
	require.Eventually(t, func() bool { return numbers(t, w.Publisher, "18080->80")["portolan_proxy_connections"] == 1 }, answerWait, time.Millisecond)
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	w.Drain(ctx)
	require.NoError(t, w.Close())
	require.NoError(t, third.SetReadDeadline(time.Now().Add(answerWait)))
	_, err := third.Read(make([]byte, 1))
	require.ErrorIs(t, err, unix.ECONNRESET)
}
