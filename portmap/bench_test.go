package portmap_test

import (
	"bufio"
	"errors"
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

// udpBindings are n ports from 10000 on, as the driver asks for a range.
func udpBindings(n int) []portmap.PortBinding {
	return []portmap.PortBinding{portRange(portmap.UDP, 10000, 10000+n-1)}
}

func portRange(p portmap.Proto, first, last int) portmap.PortBinding {
	b := portmap.PortBinding{Proto: p, Port: uint16(first), HostPort: uint16(first), HostPortEnd: uint16(last)}
	if last > first {
		b.PortEnd = uint16(last)
	}
	return b
}

// BenchmarkPublish publishes a range of UDP ports and releases it again, with
// sockets, rules, conntrack and proxies. Files and memory are of one such range
// while it is published; memory is what the process has resident.
func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{1, 1000, 10000, 16384} {
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

// BenchmarkSockets is the part of BenchmarkPublish that the kernel needs for so
// many UDP sockets: made, closed to all that arrives, bound, polled, closed.
func BenchmarkSockets(b *testing.B) {
	for _, n := range []int{1000, 10000, 16384} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
			require.NoError(b, err)
			defer unix.Close(poll)
			fds := make([]int, n)
			var to unix.SockaddrInet6
			for b.Loop() {
				for i := range fds {
					fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
					to.Port = 10000 + i
					err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0), unix.Bind(fd, &to),
						unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}))
					require.NoError(b, err)
					fds[i] = fd
				}
				b.StopTimer()
				for _, fd := range fds {
					require.NoError(b, unix.Close(fd))
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkPublishAll publishes all ports of two protocols where the host holds a
// range as one; what that costs it is package sklookup's benchmark.
func BenchmarkPublishAll(b *testing.B) {
	pub := portmap.NewPublisher(portmap.PublisherConfig{Mapper: benchMapper(b), Ranges: anyRanges{}})
	b.Cleanup(func() { require.NoError(b, pub.Close()) })
	bs := []portmap.PortBinding{portRange(portmap.TCP, 1, 65535), portRange(portmap.UDP, 1, 65535)}
	b.ReportAllocs()
	for b.Loop() {
		_, err := pub.Publish("s1", target("e1", 2), bs, recordNothing)
		require.NoError(b, err)
		b.StopTimer()
		require.NoError(b, pub.Release("s1"))
		b.StartTimer()
	}
}

// anyRanges holds every range, and does nothing.
type anyRanges struct{}

func (anyRanges) Reserve(uint8, netip.Addr, uint16, uint16) error                 { return nil }
func (anyRanges) Settle()                                                         {}
func (anyRanges) Steer(uint8, netip.Addr, uint16, uint16, bool, bool, bool) error { return nil }
func (anyRanges) Release(uint8, netip.Addr, uint16, uint16) error                 { return nil }
func (anyRanges) Sockets() ([]*net.TCPListener, []*net.UDPConn, error)            { return nil, nil, nil }

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

// BenchmarkMapOneMore maps and unmaps one endpoint with one port, or with a range
// of two, beside so many single ports or ranges of others.
func BenchmarkMapOneMore(b *testing.B) {
	for _, length := range []uint16{1, 2} {
		for _, n := range []int{0, 1000, 10000, 30000} {
			b.Run(fmt.Sprintf("length=%d/%d", length, n), func(b *testing.B) {
				m := benchMapper(b)
				one := func(i int) portmap.Mapping {
					first := uint16(1 + 2*i)
					return portmap.Mapping{Proto: portmap.UDP, HostPort: first, HostPortEnd: first + length - 1, Port: first}
				}
				others := portmap.Publication{Target: target("others", 2)}
				for i := range n {
					others.Mappings = append(others.Mappings, one(i))
				}
				require.NoError(b, m.Map(others))
				more := portmap.Publication{Target: target("more", 3), Mappings: []portmap.Mapping{one(n)}}
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
