package portmaptest

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

// TestMapper runs the contract of portmap.Mapper against what open returns,
// which it closes itself, after taking everything away again.
func TestMapper(t *testing.T, open func(*testing.T) portmap.Mapper) {
	tests := []struct {
		name string
		run  func(*testing.T, portmap.Mapper)
	}{
		{"map and unmap", mapAndUnmap},
		{"map replaces all of an endpoint's mappings", mapReplaces},
		{"map again changes nothing", mapAgain},
		{"map moves a mapping to another container address", mapMovesTarget},
		{"a host port of another endpoint is in use", portInUse},
		{"a refused map leaves what was there", refusedMap},
		{"a late unmap spares the successor", lateUnmap},
		{"families apart", familiesApart},
		{"routed families hold no host port", routedHoldsNothing},
		{"forms of mappings", forms},
		{"remove network takes its endpoints along", removeNetwork},
		{"add network again replaces it", addNetworkAgain},
		{"unknown network", unknownNetwork},
		{"load replaces everything", loadReplaces},
		{"a refused load leaves what was there", refusedLoad},
		{"guard", guard},
		{"check repairs", checkRepairs},
		{"concurrent", concurrent},
		{"ten thousand single mappings", tenThousand},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := open(t)
			t.Cleanup(func() {
				assert.NoError(t, m.Load(nil, nil))
				assert.NoError(t, m.Close())
			})
			require.NoError(t, m.Load([]portmap.Network{net0, net1}, nil))
			requireListed(t, m)
			tt.run(t, m)
		})
	}
}

var (
	net0 = portmap.Network{
		ID: "5a1c0000net0", Bridge: "plbr0",
		Subnet4: netip.MustParsePrefix("172.20.0.0/16"), Gateway4: netip.MustParseAddr("172.20.0.1"),
		Subnet6: netip.MustParsePrefix("fd20::/64"), Gateway6: netip.MustParseAddr("fd20::1"),
	}
	net1 = portmap.Network{
		ID: "5a1c0000net1", Bridge: "plbr1",
		Subnet4: netip.MustParsePrefix("172.21.0.0/16"), Gateway4: netip.MustParseAddr("172.21.0.1"),
		Subnet6: netip.MustParsePrefix("fd21::/64"), Gateway6: netip.MustParseAddr("fd21::1"),
	}
	target2 = portmap.Target{
		Endpoint: strings.Repeat("c2", 32), Network: net0.ID,
		IPv4: netip.MustParseAddr("172.20.0.2"), IPv6: netip.MustParseAddr("fd20::2"),
	}
	target3 = portmap.Target{
		Endpoint: strings.Repeat("c3", 32), Network: net0.ID,
		IPv4: netip.MustParseAddr("172.20.0.3"), IPv6: netip.MustParseAddr("fd20::3"),
	}
	target4 = portmap.Target{
		Endpoint: strings.Repeat("c4", 32), Network: net1.ID,
		IPv4: netip.MustParseAddr("172.21.0.2"), IPv6: netip.MustParseAddr("fd21::2"),
	}
)

func publish(t testing.TB, target portmap.Target, notation ...string) portmap.Publication {
	t.Helper()
	return portmap.Publication{Target: target, Mappings: Mappings(t, notation...)}
}

func mapAndUnmap(t *testing.T, m portmap.Mapper) {
	a := publish(t, target2, "8080->80", "53->53/udp")
	b := publish(t, target4, "8081->80", "8080->80/udp")
	require.NoError(t, m.Map(a))
	requireListed(t, m, a)
	require.NoError(t, m.Map(b))
	requireListed(t, m, a, b)
	require.NoError(t, m.Unmap(a.Endpoint))
	requireListed(t, m, b)
	require.NoError(t, m.Unmap(a.Endpoint), "unmap twice")
	require.NoError(t, m.Unmap("0000"), "unmap of what never was")
	requireListed(t, m, b)
	require.NoError(t, m.Unmap(b.Endpoint))
	requireListed(t, m)
}

func mapReplaces(t *testing.T, m portmap.Mapper) {
	require.NoError(t, m.Map(publish(t, target2, "8080->80", "9000-9009->9000-9009/udp", "198.51.100.1:443->443")))
	next := publish(t, target2, "8080->81", "9005-9020->9005-9020/udp")
	require.NoError(t, m.Map(next))
	requireListed(t, m, next)
	require.NoError(t, m.Map(publish(t, target3, "198.51.100.1:443->443", "9000-9004->9000-9004/udp")), "what went is free again")
	require.NoError(t, m.Map(publish(t, target2)))
	requireListed(t, m, publish(t, target3, "198.51.100.1:443->443", "9000-9004->9000-9004/udp"))
}

func mapAgain(t *testing.T, m portmap.Mapper) {
	p := publish(t, target2, "8080->80", "1000-1999->2000-2999/udp", "127.0.0.1:90->90")
	for range 3 {
		require.NoError(t, m.Map(p))
		requireListed(t, m, p)
	}
	slices.Reverse(p.Mappings)
	require.NoError(t, m.Map(p))
	requireListed(t, m, p)
}

func mapMovesTarget(t *testing.T, m portmap.Mapper) {
	p := publish(t, target2, "8080->80", "7000-7009->7000-7009/udp", "6000-6009->5000-5009/udp")
	require.NoError(t, m.Map(p))
	p.IPv4, p.IPv6 = netip.MustParseAddr("172.20.0.99"), netip.Addr{}
	require.NoError(t, m.Map(p))
	requireListed(t, m, p)
	p.Network, p.IPv4, p.IPv6 = net1.ID, netip.Addr{}, netip.MustParseAddr("fd21::99")
	require.NoError(t, m.Map(p))
	requireListed(t, m, p)
	require.NoError(t, m.RemoveNetwork(net0.ID))
	requireListed(t, m, p)
}

func portInUse(t *testing.T, m portmap.Mapper) {
	tests := []struct{ name, first, second string }{
		{"same", "8080->80", "8080->81"},
		{"udp", "53->53/udp", "53->53/udp"},
		{"sctp", "53->53/sctp", "53->53/sctp"},
		{"same address", "198.51.100.1:8080->80", "198.51.100.1:8080->80"},
		{"wildcard, then an address", "8080->80", "198.51.100.1:8080->80"},
		{"an address, then wildcard", "198.51.100.1:8080->80", "8080->80"},
		{"wildcard, then an IPv6 address", "8080->80", "[2001:db8:1::1]:8080->80"},
		{"an IPv6 address, then wildcard", "[2001:db8:1::1]:8080->80", "8080->80"},
		{"IPv4 wildcard, then an address", "0.0.0.0:8080->80", "127.0.0.1:8080->80"},
		{"both families, then IPv6 wildcard", "8080->80", "[::]:8080->80"},
		{"IPv6 wildcard, then ::1", "[::]:8080->80", "[::1]:8080->80"},
		{"last of a range", "8000-8009->8000-8009/udp", "8009->8009/udp"},
		{"shifted against equal range", "8000-8009->18000-18009/udp", "7990-8000->7990-8000/udp"},
		{"range around", "8005->80", "8000-8009->8000-8009"},
		{"range at an address in a wildcard range", "8000-8009->8000-8009", "198.51.100.1:8004-8005->1-2"},
		{"top of the port space", "65535->1", "65530-65535->65530-65535"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			first := publish(t, target2, tt.first)
			require.NoError(t, m.Map(first))
			err := m.Map(publish(t, target4, "9->9", tt.second))
			require.ErrorIs(t, err, portmap.ErrPortInUse)
			requireListed(t, m, first)
			require.NoError(t, m.Unmap(first.Endpoint))
			second := publish(t, target4, "9->9", tt.second)
			require.NoError(t, m.Map(second))
			requireListed(t, m, second)
			require.NoError(t, m.Unmap(second.Endpoint))
		})
	}
}

func refusedMap(t *testing.T, m portmap.Mapper) {
	a, b := publish(t, target2, "8080->80"), publish(t, target3, "8081->80", "53->53/udp")
	require.NoError(t, m.Map(a))
	require.NoError(t, m.Map(b))
	require.ErrorIs(t, m.Map(publish(t, target3, "1-1000->1-1000/udp", "8080->80")), portmap.ErrPortInUse)
	requireListed(t, m, a, b)
}

func lateUnmap(t *testing.T, m portmap.Mapper) {
	require.NoError(t, m.Map(publish(t, target2, "8080->80", "5000-5999->5000-5999/udp", "6000-6009->7000-7009/udp")))
	require.NoError(t, m.Unmap(target2.Endpoint))
	next := publish(t, target3, "8080->80", "5000-5999->5000-5999/udp", "6000-6009->7000-7009/udp")
	require.NoError(t, m.Map(next))
	require.NoError(t, m.Unmap(target2.Endpoint))
	requireListed(t, m, next)
	// The predecessor gave away one port and kept another.
	require.NoError(t, m.Map(publish(t, target2, "9090->80")))
	require.NoError(t, m.Unmap(target2.Endpoint))
	requireListed(t, m, next)
}

func familiesApart(t *testing.T, m portmap.Mapper) {
	pubs := []portmap.Publication{
		publish(t, target2, "0.0.0.0:8080->80", "127.0.0.1:53->53/udp", "198.51.100.1:443->443"),
		publish(t, target3, "[::]:8080->80", "127.0.0.2:53->53/udp", "198.51.100.10:443->443"),
		publish(t, target4, "8080->80/udp", "8080->80/sctp", "[2001:db8:1::1]:443->443"),
	}
	for _, p := range pubs {
		require.NoError(t, m.Map(p))
	}
	requireListed(t, m, pubs...)
	require.NoError(t, m.Unmap(target3.Endpoint))
	requireListed(t, m, pubs[0], pubs[2])
}

func routedHoldsNothing(t *testing.T, m portmap.Mapper) {
	a, b := publish(t, target2, "8080->80"), publish(t, target3, "8080->80")
	a.Routed4, a.Routed6, b.Routed4, b.Routed6 = true, true, true, true
	require.NoError(t, m.Map(a))
	require.NoError(t, m.Map(b))
	requireListed(t, m)
	c := publish(t, target4, "8080->80")
	require.NoError(t, m.Map(c))
	requireListed(t, m, c)
	b.Routed4 = false
	require.ErrorIs(t, m.Map(b), portmap.ErrPortInUse)
	require.NoError(t, m.Unmap(c.Endpoint))
	require.NoError(t, m.Map(b))
	requireListed(t, m, b)
}

func forms(t *testing.T, m portmap.Mapper) {
	only4, only6 := target3, target4
	only4.IPv6, only6.IPv4 = netip.Addr{}, netip.Addr{}
	pubs := []portmap.Publication{
		publish(t, target2,
			"80->80", "81->8081", "100-199->100-199", "200-299->1200-1299",
			"65000-65535->65000-65535/udp", "64000-64009->65526-65535/udp", "65535->65535/sctp", "1->1/sctp",
			"1000-1999->1000-1999/sctp", "198.51.100.1:3000-3009->3000-3009", "198.51.100.1:3010-3019->4010-4019",
			"[2001:db8:1::1]:3000-3009->3000-3009", "[2001:db8:1::1]:3010-3019->4010-4019",
			"127.0.0.1:53->53/udp", "[::1]:54->54/udp", "0.0.0.0:55->55/udp", "[::]:56->56/udp"),
		publish(t, only4, "8080->80", "[::]:8081->81"),
		publish(t, only6, "8082->80", "0.0.0.0:8083->81"),
	}
	for _, p := range pubs {
		require.NoError(t, m.Map(p))
	}
	requireListed(t, m, pubs...)
	for _, p := range pubs {
		require.NoError(t, m.Unmap(p.Endpoint))
	}
	requireListed(t, m)
}

func removeNetwork(t *testing.T, m portmap.Mapper) {
	a, b, c := publish(t, target2, "8080->80"), publish(t, target3, "53->53/udp"), publish(t, target4, "8081->80")
	for _, p := range []portmap.Publication{a, b, c} {
		require.NoError(t, m.Map(p))
	}
	require.NoError(t, m.RemoveNetwork(net0.ID))
	requireListed(t, m, c)
	require.Error(t, m.Map(a), "the network is gone")
	require.NoError(t, m.RemoveNetwork(net0.ID), "remove twice")
	require.NoError(t, m.RemoveNetwork("0000"), "remove what never was")
	require.NoError(t, m.RemoveNetwork(net1.ID), "the last one")
	requireListed(t, m)
	require.NoError(t, m.AddNetwork(net0))
	require.NoError(t, m.Map(a))
	requireListed(t, m, a)
}

func addNetworkAgain(t *testing.T, m portmap.Mapper) {
	a := publish(t, target2, "8080->80")
	require.NoError(t, m.Map(a))
	n := net0
	n.NoICC, n.NoMasquerade, n.Trusted = true, true, []string{"wg0"}
	require.NoError(t, m.AddNetwork(n))
	requireListed(t, m, a)
	require.NoError(t, m.AddNetwork(net0))
	requireListed(t, m, a)
	repaired, err := m.Check()
	require.NoError(t, err)
	require.False(t, repaired)
}

func unknownNetwork(t *testing.T, m portmap.Mapper) {
	lost := target2
	lost.Network = "0000"
	require.Error(t, m.Map(publish(t, lost, "8080->80")))
	require.Error(t, m.Load([]portmap.Network{net0}, []portmap.Publication{publish(t, lost, "8080->80")}))
	requireListed(t, m)
}

func loadReplaces(t *testing.T, m portmap.Mapper) {
	require.NoError(t, m.Map(publish(t, target2, "8080->80", "1-99->1-99/udp")))
	require.NoError(t, m.Map(publish(t, target4, "8081->80")))
	b, c := publish(t, target2, "8081->80"), publish(t, target3, "8080->80", "50-60->50-60/udp")
	require.NoError(t, m.Load([]portmap.Network{net0}, []portmap.Publication{b, c}))
	requireListed(t, m, b, c)
	require.Error(t, m.Map(publish(t, target4, "9->9")), "net1 is gone")
	require.ErrorIs(t, m.Map(publish(t, target2, "8080->80")), portmap.ErrPortInUse)
	repaired, err := m.Check()
	require.NoError(t, err)
	require.False(t, repaired)
	require.NoError(t, m.Load(nil, nil))
	requireListed(t, m)
}

func refusedLoad(t *testing.T, m portmap.Mapper) {
	a := publish(t, target2, "8080->80")
	require.NoError(t, m.Map(a))
	err := m.Load([]portmap.Network{net0}, []portmap.Publication{publish(t, target2, "1->1"), publish(t, target3, "1->1")})
	require.ErrorIs(t, err, portmap.ErrPortInUse)
	requireListed(t, m, a)
	require.NoError(t, m.Map(publish(t, target4, "9->9")), "net1 is still there")
}

func guard(t *testing.T, m portmap.Mapper) {
	a := publish(t, target2, "8080->80")
	require.NoError(t, m.Map(a))
	for _, on := range []struct{ v4, v6 bool }{{true, false}, {true, true}, {true, true}, {false, true}, {false, false}} {
		require.NoError(t, m.Guard(on.v4, on.v6))
		v4, v6, err := m.Guarded()
		require.NoError(t, err)
		require.Equal(t, on, struct{ v4, v6 bool }{v4, v6})
		repaired, err := m.Check()
		require.NoError(t, err)
		require.False(t, repaired)
		requireListed(t, m, a)
	}
}

func checkRepairs(t *testing.T, m portmap.Mapper) {
	a, b := publish(t, target2, "8080->80", "1-99->1-99/udp", "100-109->200-209/udp"), publish(t, target4, "127.0.0.1:153->53/udp")
	require.NoError(t, m.Map(a))
	require.NoError(t, m.Map(b))
	require.NoError(t, m.Guard(true, true))
	flush(t, m)
	left, err := m.List()
	require.NoError(t, err)
	repaired, err := m.Check()
	require.NoError(t, err)
	// A table that its process owns survives a flush.
	require.Equal(t, len(left) == 0, repaired, "repaired, with %v left by the flush", left)
	requireListed(t, m, a, b)
	repaired, err = m.Check()
	require.NoError(t, err)
	require.False(t, repaired, "nothing to repair the second time")
	flush(t, m)
	c := publish(t, target3, "9090->90")
	if err := m.Map(c); err != nil { // the rules are away: that may be an error, but not a lasting one
		_, err := m.Check()
		require.NoError(t, err)
		require.NoError(t, m.Map(c))
	}
	_, err = m.Check()
	require.NoError(t, err)
	requireListed(t, m, a, b, c)
}

// flush takes all rules of the namespace away behind the mapper's back.
func flush(t *testing.T, m portmap.Mapper) {
	t.Helper()
	if f, ok := m.(interface{ Flush() }); ok {
		f.Flush()
		return
	}
	out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func concurrent(t *testing.T, m portmap.Mapper) {
	targets := []portmap.Target{target2, target3, target4}
	notation := []string{"8080->80", "8081->80", "8082->80"}
	var wg sync.WaitGroup
	for i, target := range targets {
		own, shared := publish(t, target, notation[i]), publish(t, target, "53->53/udp")
		wg.Go(func() {
			for range 3 {
				assert.NoError(t, m.Map(own))
				if err := m.Map(shared); err != nil {
					assert.ErrorIs(t, err, portmap.ErrPortInUse)
				}
				assert.NoError(t, m.Unmap(target.Endpoint))
			}
			assert.NoError(t, m.Map(own))
		})
	}
	wg.Wait()
	requireListed(t, m, publish(t, target2, notation[0]), publish(t, target3, notation[1]), publish(t, target4, notation[2]))
}

func tenThousand(t *testing.T, m portmap.Mapper) {
	p := portmap.Publication{Target: target2}
	for i := range 10_000 {
		host := uint16(20_000 + 2*i)
		p.Mappings = append(p.Mappings, portmap.Mapping{Proto: portmap.UDP, HostPort: host, HostPortEnd: host, Port: uint16(1 + i%97)})
	}
	require.NoError(t, m.Map(p))
	requireListed(t, m, p)
	more := publish(t, target3, "8080->80")
	require.NoError(t, m.Map(more))
	require.ErrorIs(t, m.Map(publish(t, target3, "39998->80/udp")), portmap.ErrPortInUse)
	p.Mappings = p.Mappings[5_000:]
	require.NoError(t, m.Map(p))
	requireListed(t, m, p, more)
	require.NoError(t, m.Unmap(p.Endpoint))
	requireListed(t, m, more)
}
