package portmap_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/portmap"
)

func benchMapper(b *testing.B) *portmap.NFTables {
	b.Helper()
	m, err := portmap.NewNFTables(nil)
	require.NoError(b, err)
	b.Cleanup(func() {
		require.NoError(b, m.Load(nil, nil))
		require.NoError(b, m.Close())
	})
	require.NoError(b, m.Load([]portmap.Network{rigNet}, nil))
	return m
}

// udpBindings are n single ports from 10000 on, as the engine sends a range.
func udpBindings(n int) []portmap.PortBinding {
	bs := make([]portmap.PortBinding, n)
	for i := range bs {
		p := uint16(10000 + i)
		bs[(i*7919)%n] = portmap.PortBinding{Proto: portmap.UDP, Port: p, HostPort: p, HostPortEnd: p}
	}
	return bs
}

// BenchmarkPublish publishes a range of UDP ports and releases it again, with
// sockets, rules, conntrack and proxies. Files and memory are of one such range
// while it is published; memory is what the process has resident.
func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{1, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			pub := portmap.NewPublisher(portmap.PublisherConfig{Mapper: benchMapper(b)})
			b.Cleanup(func() { require.NoError(b, pub.Close()) })
			bs := udpBindings(n)
			files, memory := portmap.OpenSockets(b), resident(b)
			b.ReportAllocs()
			first := true
			for b.Loop() {
				_, err := pub.Publish("s1", target("e1", 2), bs, recordNothing)
				require.NoError(b, err)
				b.StopTimer()
				if first {
					b.ReportMetric(float64(portmap.OpenSockets(b)-files), "sockets")
					b.ReportMetric(float64(resident(b)-memory)/1024, "MiB-resident")
					first = false
				}
				require.NoError(b, pub.Release("s1"))
				b.StartTimer()
			}
		})
	}
}

// BenchmarkRelease is the way back of BenchmarkPublish.
func BenchmarkRelease(b *testing.B) {
	for _, n := range []int{1, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			pub := portmap.NewPublisher(portmap.PublisherConfig{Mapper: benchMapper(b)})
			b.Cleanup(func() { require.NoError(b, pub.Close()) })
			bs := udpBindings(n)
			for b.Loop() {
				b.StopTimer()
				_, err := pub.Publish("s1", target("e1", 2), bs, recordNothing)
				require.NoError(b, err)
				b.StartTimer()
				require.NoError(b, pub.Release("s1"))
			}
		})
	}
}

// resident is VmRSS in KiB.
func resident(b *testing.B) (kib int) {
	b.Helper()
	f, err := os.Open("/proc/self/status")
	require.NoError(b, err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, found := strings.CutPrefix(lines.Text(), "VmRSS:"); found {
			_, err := fmt.Sscan(rest, &kib)
			require.NoError(b, err)
		}
	}
	return kib
}

// BenchmarkMapOneMore maps and unmaps one endpoint with one port, beside so many
// elements of others: each in an interval of its own, and in a hash.
func BenchmarkMapOneMore(b *testing.B) {
	for _, shift := range []uint16{0, 1} {
		for _, n := range []int{0, 1000, 10000, 65534} {
			b.Run(fmt.Sprintf("shift=%d/%d", shift, n), func(b *testing.B) {
				m := benchMapper(b)
				const free = 5000
				others := portmap.Publication{Target: target("others", 2)}
				for port := uint16(1); len(others.Mappings) < n; port++ {
					if port == free {
						continue
					}
					to := port
					if shift > 0 {
						to = 65535 - port + 1
					}
					others.Mappings = append(others.Mappings, portmap.Mapping{Proto: portmap.UDP, HostPort: port, HostPortEnd: port, Port: to})
				}
				require.NoError(b, m.Map(others))
				more := portmap.Publication{Target: target("more", 3), Mappings: []portmap.Mapping{
					{Proto: portmap.UDP, HostPort: free, HostPortEnd: free, Port: free + shift},
				}}
				for b.Loop() {
					require.NoError(b, m.Map(more))
					require.NoError(b, m.Unmap("more"))
				}
			})
		}
	}
}

// BenchmarkFlushUDP moves a UDP port while the host has so many UDP flows.
func BenchmarkFlushUDP(b *testing.B) {
	netnstest.Sysctl(b, "ipv4/ip_local_port_range", "1024 65535")
	pub := portmap.NewPublisher(portmap.PublisherConfig{Mapper: benchMapper(b)})
	b.Cleanup(func() { require.NoError(b, pub.Close()) })
	bs := bindings(b, "53:53/udp")
	to := []portmap.Target{target("e1", 2), target("e2", 3)}
	for _, flows := range []int{0, 1000, 50000} {
		fillConntrack(b, flows)
		b.Run(fmt.Sprint(flows), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				_, err := pub.Publish("s1", to[i%2], bs, recordNothing)
				require.NoError(b, err)
			}
		})
	}
}

// fillConntrack has one socket send to n ports of 127.0.0.1 and up, so that
// conntrack has at least n entries.
func fillConntrack(b *testing.B, n int) {
	b.Helper()
	c, err := net.ListenUDP("udp4", nil)
	require.NoError(b, err)
	defer c.Close()
	for i := range n {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(1 + i/60000), 9}), uint16(1000+i%60000))
		_, _ = c.WriteToUDPAddrPort([]byte{0}, to) // refused, and tracked
	}
	entries, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	require.NoError(b, err)
	require.GreaterOrEqual(b, len(entries), n)
}
