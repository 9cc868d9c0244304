package portmaptest

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

// A mapping of both protocols.
func both(notation string) []string { return []string{notation, notation + "/udp"} }

func published(l *lab) {
	l.publish(publish(l, target2, both("8080->80")...))
	serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
	requireAnswered(l.T, netip.Addr{}, probes("neighbour", l.neighbour, 8080, lan4, lan4b, lan6, lan6b)...)
	requireAnswered(l.T, net0.Gateway4, probes("host", here{}, 8080, localhost4, netip.MustParseAddr("127.1.2.3"))...)
	requireReached(l.T, probes("host", here{}, 8080, lan4, lan4b, lan6, lan6b)...)
	requireReached(l.T, probes("host", here{}, 8080, net0.Gateway4, net0.Gateway6, net1.Gateway4)...)
	requireReached(l.T, probes("other network", l.c4, 8080, lan4, lan6, net1.Gateway4, net1.Gateway6)...)
	requireReached(l.T, probes("docker0", l.foreign, 8080, lan4, lan6)...)
	requireSilent(l.T, probes("neighbour", l.neighbour, 80, lan4, lan6)...)
}

func ranges(l *lab) {
	l.publish(publish(l, target2, slices.Concat(
		both("10000-10999->10000-10999"), both("20000-20099->30000-30099"),
		both("65000-65535->65000-65535"), both("60000-60009->64991-65000"), both("4000-4009->65526-65535"))...))
	// 65000 is both of a range's last container port and of an equal range.
	pairs := map[uint16]uint16{
		10000: 10000, 10500: 10500, 10999: 10999,
		20000: 30000, 20050: 30050, 20099: 30099,
		65001: 65001, 65535: 65535,
		60000: 64991, 60009: 65000,
		4000: 65526, 4009: 65535,
	}
	servers := map[uint16]*server{}
	for _, port := range pairs {
		if servers[port] == nil {
			servers[port] = serve(l.T, l.c2, netip.Addr{}, "udp:"+strconv.Itoa(int(port)), "tcp:"+strconv.Itoa(int(port)))
		}
	}
	for host, port := range pairs {
		before := len(servers[port].seen())
		ps := append(probes("neighbour", l.neighbour, host, lan4, lan6), probes("host", here{}, host, localhost4)...)
		requireReached(l.T, ps...)
		require.Len(l.T, servers[port].seen(), before+len(ps), "%d goes to %d", host, port)
	}
	requireSilent(l.T, probes("neighbour", l.neighbour, 30050, lan4, lan6)...)
}

func oneAddress(l *lab) {
	l.publish(
		publish(l, target2, slices.Concat(both("198.51.100.10:8080->80"), both("[2001:db8:2::10]:8080->80"))...),
		publish(l, target3, slices.Concat(both("198.51.100.10:9000-9009->9000-9009"), both("198.51.100.1:8080->80"))...))
	two := serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
	three := serve(l.T, l.c3, netip.Addr{}, "udp:80", "tcp:80", "udp:9005", "tcp:9005")
	requireAnswered(l.T, netip.Addr{}, probes("neighbour", l.neighbour, 8080, lan4b, lan6b)...)
	require.Len(l.T, two.seen(), 4)
	requireAnswered(l.T, netip.Addr{}, probes("neighbour", l.neighbour, 8080, lan4)...)
	requireAnswered(l.T, netip.Addr{}, probes("neighbour", l.neighbour, 9005, lan4b)...)
	require.Len(l.T, three.seen(), 4)
	requireReached(l.T, probes("host", here{}, 8080, lan4, lan4b, lan6b)...)
	requireSilent(l.T, append(append(
		probes("neighbour", l.neighbour, 8080, lan6),
		probes("neighbour", l.neighbour, 9005, lan4)...),
		probes("host", here{}, 8080, localhost4, net0.Gateway4, lan6)...)...)
}

func unmapAndMove(l *lab) {
	l.publish()
	serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
	three := serve(l.T, l.c3, netip.Addr{}, "udp:80", "tcp:80")
	ask := append(probes("neighbour", l.neighbour, 8080, lan4, lan6), probes("host", here{}, 8080, localhost4)...)
	requireSilent(l.T, ask...)
	require.NoError(l.T, l.m.Map(publish(l, target2, both("8080->80")...)))
	requireReached(l.T, ask...)
	require.NoError(l.T, l.m.Unmap(target2.Endpoint))
	requireSilent(l.T, ask...)
	require.NoError(l.T, l.m.Map(publish(l, target3, both("8080->80")...)))
	require.NoError(l.T, l.m.Unmap(target2.Endpoint))
	seen := len(three.seen())
	requireReached(l.T, ask...)
	require.Len(l.T, three.seen(), seen+len(ask))
}

func sctp(l *lab) {
	l.publish(publish(l, target2, "5000->6000/sctp", "7000-7009->7000-7009/sctp"))
	for _, addr := range []netip.Addr{lan4, lan6} {
		for host, port := range map[uint16]uint16{5000: 6000, 7009: 7009} {
			seen, err := l.sctpArrives(addr, host, port)
			require.NoError(l.T, err, "INIT to %s", netip.AddrPortFrom(addr, host))
			want := neighbour4
			if addr.Is6() {
				want = neighbour6
			}
			require.Equal(l.T, want, seen)
		}
	}
}

func hairpin(brNetfilter string) func(*lab) {
	return func(l *lab) {
		l.bridgeNetfilter(brNetfilter)
		l.publish(
			publish(l, target2, both("8080->80")...),
			publish(l, target3, slices.Concat(both("198.51.100.1:9000->80"), both("[2001:db8:1::1]:9000->80"))...))
		two := serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
		serve(l.T, l.c3, netip.Addr{}, "udp:80", "tcp:80")
		requireReached(l.T, probes("itself", l.c2, 8080, lan4, lan6, net0.Gateway4, net0.Gateway6)...)
		requireReached(l.T, probes("its neighbour", l.c3, 8080, lan4, lan6, net0.Gateway4, net0.Gateway6)...)
		require.Len(l.T, two.seen(), 16)
		requireReached(l.T, probes("itself, one address", l.c3, 9000, lan4, lan6)...)
		requireReached(l.T, probes("its neighbour, one address", l.c2, 9000, lan4, lan6)...)
		requireReached(l.T, probes("another network", l.c4, 8080, lan4, lan6)...)
		requireAnswered(l.T, netip.Addr{}, probes("container to container", l.c3, 80, target2.IPv4, target2.IPv6)...)
		requireAnswered(l.T, net0.Gateway4, probes("host to container", here{}, 80, target2.IPv4)...)
		requireAnswered(l.T, net0.Gateway6, probes("host to container", here{}, 80, target2.IPv6)...)
	}
}

func outbound(l *lab) {
	serve(l.T, l.neighbour, netip.Addr{}, "udp:80", "tcp:80")
	for _, brNetfilter := range []string{"0", "1"} {
		l.bridgeNetfilter(brNetfilter)
		l.publish()
		requireAnswered(l.T, lan4, probes("container", l.c2, 80, neighbour4)...)
		requireAnswered(l.T, lan6, probes("container", l.c2, 80, neighbour6)...)
	}
	n := net0
	n.NoMasquerade = true
	l.load([]portmap.Network{n, net1})
	requireAnswered(l.T, netip.Addr{}, probes("unmasqueraded", l.c2, 80, neighbour4, neighbour6)...)
	requireAnswered(l.T, lan4, probes("other network", l.c4, 80, neighbour4)...)
	n = net0
	n.SNAT4, n.SNAT6 = lan4b, lan6b
	l.load([]portmap.Network{n, net1})
	requireAnswered(l.T, lan4b, probes("fixed source", l.c2, 80, neighbour4)...)
	requireAnswered(l.T, lan6b, probes("fixed source", l.c2, 80, neighbour6)...)
}

func broadcast(l *lab) {
	l.publish(publish(l, target2, "8080->80/udp"))
	reserved := serve(l.T, here{}, netip.Addr{}, "udp:8080")
	for _, to := range []string{"198.51.100.255", "255.255.255.255"} {
		seen := len(reserved.seen())
		require.NoError(l.T, send(l.neighbour, netip.MustParseAddrPort(to+":8080")))
		require.Eventually(l.T, func() bool { return len(reserved.seen()) > seen }, answerWait, time.Millisecond, "broadcast to %s", to)
		require.Equal(l.T, neighbour4, reserved.seen()[seen].Addr())
	}
}

// linkLocal is an address of lan0 as the neighbour writes it.
func (l *lab) linkLocal() netip.Addr {
	var index int
	require.NoError(l.T, l.neighbour.Do(func() (err error) {
		index, err = interfaceIndex("eth0")
		return err
	}))
	for _, f := range strings.Fields(run(l.T, "ip", "-6", "-br", "addr", "show", "dev", "lan0", "scope", "link")) {
		if p, err := netip.ParsePrefix(f); err == nil {
			return p.Addr().WithZone(fmt.Sprint(index))
		}
	}
	l.Fatal("lan0 has no link-local address")
	return netip.Addr{}
}

func proxyClients(l *lab) {
	reserved := serve(l.T, here{}, netip.Addr{}, "udp:8080", "tcp:8080")
	serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
	only4, only6 := target2, target2
	only4.IPv6, only6.IPv4 = netip.Addr{}, netip.Addr{}
	local := netip.MustParseAddr("::1")

	l.publish(publish(l, only4, both("8080->80")...))
	requireAnswered(l.T, netip.Addr{}, probes("neighbour", l.neighbour, 8080, lan4)...)
	requireAnswered(l.T, netip.Addr{}, probes("host", here{}, 8080, local, lan6)...)
	seen := len(reserved.seen())
	requireRefused(l.T, probes("neighbour", l.neighbour, 8080, lan6, l.linkLocal())...)
	requireRefused(l.T, probes("container", l.c4, 8080, lan6, net1.Gateway6)...)
	require.Len(l.T, reserved.seen(), seen)

	l.publish(publish(l, only6, both("8080->80")...))
	requireAnswered(l.T, netip.Addr{}, probes("neighbour", l.neighbour, 8080, lan6)...)
	requireAnswered(l.T, netip.Addr{}, probes("host", here{}, 8080, local, localhost4, lan4)...)
	requireRefused(l.T, probes("neighbour", l.neighbour, 8080, lan4, l.linkLocal())...)

	only4.ProxyRemote, only6.ProxyRemote = true, true
	l.publish(publish(l, only4, both("8080->80")...))
	requireAnswered(l.T, netip.Addr{}, probes("neighbour", l.neighbour, 8080, lan6)...)
	requireReached(l.T, probes("neighbour", l.neighbour, 8080, l.linkLocal())...)
	l.publish(publish(l, only6, both("8080->80")...))
	requireAnswered(l.T, netip.Addr{}, probes("neighbour", l.neighbour, 8080, lan4)...)

	l.publish(publish(l, target2, both("8080->80")...))
	requireRefused(l.T, probes("neighbour", l.neighbour, 8080, l.linkLocal())...)
	l.publish()
	requireAnswered(l.T, netip.Addr{}, probes("neighbour to a port that nobody published", l.neighbour, 8080, lan4, lan6)...)
}
