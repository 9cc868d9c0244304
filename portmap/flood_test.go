package portmap_test

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/portmap"
)

// sourcesOr is from how many addresses a flood comes: PORTOLAN_FLOOD, or n, which
// is what make test has time for.
func sourcesOr(t *testing.T, n int) int {
	t.Helper()
	text := os.Getenv("PORTOLAN_FLOOD")
	if text == "" {
		return n
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, "PORTOLAN_FLOOD=%s", text)
	return n
}

// underFlood floods a port of this host and calls ask again and again meanwhile,
// at least once.
func underFlood(t *testing.T, w *town, tcp bool, port uint16, sources int, ask func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		flood(t, w.neighbour, tcp, port, sources)
	}()
	for {
		ask()
		select {
		case <-done:
			return
		default:
		}
	}
}

// proxied publishes ports that the neighbour reaches through the proxy alone:
// 53/udp and 8080 of c2, which are flooded, and 5353 of c3.
func proxied(t *testing.T, change func(*portmap.PublisherConfig)) *town {
	t.Helper()
	require.NoError(t, netlink.ConntrackTableFlush(netlink.ConntrackTable))
	w := newTownWith(t, nil, change)
	say(t, w.c2, 53, "two")
	say(t, w.c2, 80, "two")
	say(t, w.c3, 53, "three")
	for i, specs := range [][]string{{"53:53/udp", "8080:80"}, {"5353:53/udp", "5353:53"}} {
		to := only6(target([]string{"e1", "e2"}[i], 2+i))
		to.ProxyRemote = true
		w.publish(t, to.Endpoint, to, specs...)
	}
	requireSays(t, w.neighbour, "three", "198.51.100.1:5353")
	return w
}

// TestUDPFlood floods a port of the proxy from 200,000 spoofed sources, or more. Its flows
// stay at their bound, and so does the memory; another port is served all the
// time, and the numbers say what was lost.
func TestUDPFlood(t *testing.T) {
	const most = 64
	sources := sourcesOr(t, 200_000)
	w := proxied(t, func(cfg *portmap.PublisherConfig) { cfg.MaxFlows = most })
	before, noPortsBefore := heap(), noPorts(t)
	underFlood(t, w, false, 53, sources, func() {
		requireSays(t, w.neighbour, "three", "198.51.100.1:5353")
		require.LessOrEqual(t, numbers(t, w.Publisher, "53->53/udp")["portolan_proxy_flows"], most)
	})
	var n map[string]int
	var missed int
	arrived := func() int {
		n, missed = numbers(t, w.Publisher, "53->53/udp"), noPorts(t)-noPortsBefore
		return n["portolan_proxy_flows_total"] + n["portolan_proxy_socket_drops_total"] + missed
	}
	require.Eventually(t, func() bool { return arrived() >= sources }, 2*time.Minute, 10*time.Millisecond, "of %d sources: %v", sources, &n)
	t.Logf("%d sources, of which %d met no socket: %v", sources, missed, n)
	require.Less(t, missed, 10)
	require.Equal(t, most, n["portolan_proxy_flows"])
	require.Equal(t, n["portolan_proxy_flows_total"]-most, n["portolan_proxy_flows_evicted_total limit"], "%v", n)
	require.Less(t, heap()-before, 8<<20)
	// The backend may be behind, its buffer full, and lose a question; one that it
	// answers is the last that waits.
	require.Eventually(t, func() bool {
		_, err := ask(here{}, "udp", "[fd20::2]:53", time.Second)
		return err == nil
	}, answerWait, 10*time.Millisecond, "the backend goes through what the flood left")
	got, err := ask(w.neighbour, "udp", "198.51.100.1:53", answerWait)
	require.NoError(t, err)
	require.Equal(t, "two", got, "a flow that is new ends the idlest")
}

// noPorts counts the datagrams for which the kernel found no socket. One of a
// flood may be among them though its port has one: while a lookup goes along a
// chain of its hash table, connect(2) on another processor may move a socket
// from there to the chain of its new address, and the lookup with it. A proxy
// connects with each flow, a few times in a flood by a port of that chain.
func noPorts(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/net/snmp")
	require.NoError(t, err)
	var udp [][]string // names, then values
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "Udp:" {
			udp = append(udp, f)
		}
	}
	require.Len(t, udp, 2)
	n, err := strconv.Atoi(udp[1][slices.Index(udp[0], "NoPorts")])
	require.NoError(t, err)
	return n
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// TestSYNFlood floods a port of the proxy with SYNs that nobody follows up.
func TestSYNFlood(t *testing.T) {
	w := proxied(t, func(*portmap.PublisherConfig) {})
	sources := sourcesOr(t, 50_000)
	underFlood(t, w, true, 8080, sources, func() {
		requireSays(t, w.neighbour, "three", "198.51.100.1:5353")
	})
	require.Eventually(t, func() bool {
		return numbers(t, w.Publisher, "8080->80")["portolan_proxy_listener_drops_total"] > sources/2
	}, answerWait, 10*time.Millisecond)
	require.Zero(t, numbers(t, w.Publisher, "8080->80")["portolan_proxy_connections"])
	got, err := ask(w.neighbour, "tcp", "198.51.100.1:8080", answerWait)
	require.NoError(t, err)
	require.Equal(t, "two", got)
}
