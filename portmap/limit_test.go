package portmap_test

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/portmap"
)

// flood sends packets from as many sources to a port of this host, in the LAN.
func flood(t *testing.T, from *netnstest.Host, tcp bool, port uint16, sources int) {
	t.Helper()
	lan0, err := netlink.LinkByName("lan0")
	require.NoError(t, err)
	f := netnstest.Flood{
		Iface: "eth0", Router: lan0.Attrs().HardwareAddr, TCP: tcp, Count: sources,
		To: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), port),
	}
	require.NoError(t, f.Send(from))
}

// entries counts the conntrack entries with a destination port that clients used.
func entries(t *testing.T, port uint16) (n int) {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	require.NoError(t, err)
	for _, f := range flows {
		if f.Forward.DstPort == port {
			n++
		}
	}
	return n
}

func conntrackCount(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	require.NoError(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	return n
}

// dropped are what the limits have dropped, by mapping.
func dropped(t *testing.T, m portmap.Mapper) map[string]int {
	t.Helper()
	ds, err := m.Drops()
	require.NoError(t, err)
	all := map[string]int{}
	for _, d := range ds {
		all[fmt.Sprint(d.Endpoint, " ", d.Mapping)] = int(d.Packets)
	}
	return all
}

func requireDropped(t *testing.T, m portmap.Mapper, mapping string, packets int) {
	t.Helper()
	require.Eventually(t, func() bool { return dropped(t, m)[mapping] == packets }, answerWait, 10*time.Millisecond, "%s: %d", mapping, packets)
}

// TestMaxFlows floods a limited port from 200,000 spoofed sources, or more, and SYNs too:
// its mapping has as many conntrack entries as it may, other ports of the same
// container and of others are served, and the counter says what was dropped.
func TestMaxFlows(t *testing.T) {
	for name, sources := range map[string]int{"nftables": 200_000, "iptables": 20_000} {
		t.Run(name, func(t *testing.T) { testMaxFlows(t, name, sourcesOr(t, sources)) })
	}
}

func testMaxFlows(t *testing.T, kind string, sources int) {
	// An earlier test's entries are not new, and not counted.
	require.NoError(t, netlink.ConntrackTableFlush(netlink.ConntrackTable))
	w := newTown(t)
	var m portmap.Mapper = w.mapper
	if kind == "iptables" {
		require.NoError(t, w.mapper.Load(nil, nil))
		m = openIPTables(t)
		t.Cleanup(func() { require.NoError(t, m.Load(nil, nil)) })
		require.NoError(t, m.Load([]portmap.Network{rigNet}, nil))
	}
	const limit = 100
	say(t, w.c2, 53, "two")
	say(t, w.c2, 80, "two")
	say(t, w.c3, 53, "three")
	limited := target("e1", 2)
	limited.MaxFlows = limit
	pub := portmap.Publication{Target: limited, Mappings: mappings(t, "53->53/udp", "8080->80", "8080->80/udp", "10000-10009->10000-10009/udp", "198.51.100.1:9000->80")}
	require.NoError(t, m.Map(pub))
	require.NoError(t, m.Map(portmap.Publication{Target: target("e2", 3), Mappings: mappings(t, "5353->53/udp", "5353->53")}))
	other := []string{"198.51.100.1:5353"}
	requireSays(t, w.neighbour, "three", other...)
	requireSays(t, w.neighbour, "two", "198.51.100.1:8080")

	flood(t, w.neighbour, false, 53, sources)
	requireDropped(t, m, "e1 53->53/udp", sources-limit)
	require.LessOrEqual(t, entries(t, 53), limit)
	require.Less(t, conntrackCount(t), limit+50)
	_, err := ask(w.neighbour, "udp", "198.51.100.1:53", 50*time.Millisecond)
	require.Error(t, err, "the limit is reached")
	requireSays(t, w.neighbour, "two", "198.51.100.1:8080")
	requireSays(t, w.neighbour, "three", other...)

	// A range has one limit for all of it, a host address its own.
	for port := range uint16(10) {
		flood(t, w.neighbour, false, 10000+port, limit)
	}
	requireDropped(t, m, "e1 10000-10009->10000-10009/udp", 9*limit)
	flood(t, w.neighbour, true, 9000, 3*limit)
	requireDropped(t, m, "e1 198.51.100.1:9000->80", 2*limit)
	requireSays(t, w.neighbour, "two", "198.51.100.1:8080")
	requireSays(t, w.neighbour, "three", other...)

	// What has ended makes room.
	require.NoError(t, netlink.ConntrackTableFlush(netlink.ConntrackTable))
	require.Eventually(t, func() bool {
		got, _ := ask(w.neighbour, "udp", "198.51.100.1:53", 100*time.Millisecond)
		return got == "two"
	}, answerWait, time.Millisecond)

	// It goes with the ports, and other ports' rules do not change with it.
	repaired, err := m.Check()
	require.NoError(t, err)
	require.False(t, repaired)
	require.NoError(t, m.Unmap("e1"))
	require.Empty(t, dropped(t, m))
	pub.MaxFlows = 0
	require.NoError(t, m.Map(pub))
	flood(t, w.neighbour, false, 53, 3*limit)
	require.Eventually(t, func() bool { return entries(t, 53) > 2*limit }, answerWait, 10*time.Millisecond, "no limit, no end")
}

// TestMaxFlowsOfThisHost counts the host's own clients, too.
func TestMaxFlowsOfThisHost(t *testing.T) {
	w := newTown(t)
	say(t, w.c2, 53, "two")
	to := target("e1", 2)
	to.MaxFlows = 3
	w.publish(t, "s1", to, "53:53/udp")
	for range 3 {
		got, err := ask(here{}, "udp", "127.0.0.1:53", answerWait)
		require.NoError(t, err)
		require.Equal(t, "two", got)
	}
	_, err := ask(here{}, "udp", "127.0.0.1:53", 50*time.Millisecond)
	require.Error(t, err)
	require.NotZero(t, dropped(t, w.mapper)["e1 53->53/udp"])
}
