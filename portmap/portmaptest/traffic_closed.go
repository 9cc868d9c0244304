package portmaptest

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/portmap"
)

func loopback(l *lab) {
	l.publish(publish(l, target2, slices.Concat(both("127.0.0.1:8080->80"), both("8081->81"))...))
	two := serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
	control := serve(l.T, l.c2, netip.Addr{}, "udp:81", "tcp:81")
	own := serve(l.T, here{}, localhost4, "udp:9999")

	requireAnswered(l.T, net0.Gateway4, probes("host", here{}, 8080, localhost4)...)
	requireSilent(l.T, slices.Concat(
		probes("host", here{}, 8080, netip.MustParseAddr("127.0.0.2"), lan4),
		probes("neighbour", l.neighbour, 8080, lan4, lan6),
		probes("other network", l.c4, 8080, lan4, net0.Gateway4, net1.Gateway4),
		probes("same network", l.c3, 8080, lan4, net0.Gateway4),
		probes("docker0", l.foreign, 8080, lan4, net0.Gateway4))...)

	// Frames to 127.0.0.1 at the host's MAC address. The last one of each sender
	// goes to where it must arrive; by then those before it have been dropped.
	before := len(two.seen())
	for _, s := range []struct {
		from  place
		iface string // of the host
		addr  netip.Addr
	}{
		{l.neighbour, "lan0", neighbour4},
		{l.c4, "plbr1", target4.IPv4},
		{l.c3, "plbr0", target3.IPv4},
	} {
		link, err := net.InterfaceByName(s.iface)
		require.NoError(l.T, err)
		send := func(to netip.Addr, port uint16) {
			src := netip.AddrPortFrom(s.addr, 40_000+port%1000)
			require.NoError(l.T, sendFrame(s.from, "eth0", link.HardwareAddr, src, netip.AddrPortFrom(to, port)))
		}
		seen := len(control.seen())
		send(localhost4, 8080)
		send(localhost4, 8081)
		send(localhost4, 9999)
		send(lan4, 8081)
		require.Eventually(l.T, func() bool { return len(control.seen()) > seen }, answerWait, time.Millisecond, "%s: the frame that must arrive", s.iface)
		require.Len(l.T, control.seen(), seen+1, "%s: 127.0.0.1 reached a wildcard mapping", s.iface)
		require.Len(l.T, two.seen(), before, "%s: 127.0.0.1 reached the container", s.iface)
		require.Empty(l.T, own.seen(), "%s: 127.0.0.1 reached the host's own service", s.iface)
	}
}

func closedByDrop(l *lab) { closed(l) }

// closedByUs is closed where nothing but our own rules drops.
func closedByUs(l *lab) {
	flushAll(l.T)
	closed(l)
}

func closed(l *lab) {
	l.publish(publish(l, target2, both("8080->80")...), publish(l, target4, both("8081->80")...))
	serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80", "udp:81", "tcp:81")
	requireReached(l.T, probes("host", here{}, 81, target2.IPv4, target2.IPv6)...)
	requireReached(l.T, probes("same network", l.c3, 81, target2.IPv4, target2.IPv6)...)
	requireReached(l.T, probes("neighbour", l.neighbour, 8080, lan4, lan6)...)
	for _, port := range []uint16{80, 81} {
		requireSilent(l.T, slices.Concat(
			probes("neighbour", l.neighbour, port, target2.IPv4, target2.IPv6),
			probes("other network", l.c4, port, target2.IPv4, target2.IPv6),
			probes("docker0", l.foreign, port, target2.IPv4, target2.IPv6))...)
	}
}

func foreignBridge(l *lab) {
	serve(l.T, l.foreign, netip.Addr{}, "udp:81", "tcp:81")
	serve(l.T, l.neighbour, netip.Addr{}, "udp:82", "tcp:82")
	requireReached(l.T, probes("host", here{}, 81, foreign4, foreign6)...)
	requireReached(l.T, probes("docker0", l.foreign, 82, neighbour4, neighbour6)...)
	requireReached(l.T, probes("container", l.c2, 82, neighbour4, neighbour6)...)
	requireSilent(l.T, probes("container", l.c2, 81, foreign4, foreign6)...)

	// A bridge with containers whose name says nothing, and one with a name like
	// those of Docker that the default route goes by: the host's LAN.
	netnstest.Bridge(l.T, "other0", "172.18.0.1/16")
	netnstest.Bridge(l.T, "br-wan", "203.0.113.1/24")
	run(l.T, "ip", "route", "add", "default", "via", "203.0.113.2", "dev", "br-wan")
	other := host(l.T, "veth6", "other0", nil, []string{"172.18.0.2/16"}, "172.18.0.1")
	wan := host(l.T, "veth7", "br-wan", nil, []string{"203.0.113.2/24"})
	serve(l.T, other, netip.Addr{}, "udp:81", "tcp:81")
	serve(l.T, wan, netip.Addr{}, "udp:82", "tcp:82")
	l.publish()
	other4, wan4 := netip.MustParseAddr("172.18.0.2"), netip.MustParseAddr("203.0.113.2")
	requireReached(l.T, probes("host", here{}, 81, other4)...)
	requireReached(l.T, probes("container", l.c2, 82, wan4)...)
	requireSilent(l.T, probes("container", l.c2, 81, other4)...)
}

func internal(l *lab) {
	n := net0
	n.Internal = true
	serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
	four := serve(l.T, l.c4, netip.Addr{}, "udp:80", "tcp:80")
	serve(l.T, l.neighbour, netip.Addr{}, "udp:82", "tcp:82")
	serve(l.T, l.foreign, netip.Addr{}, "udp:81", "tcp:81")
	l.load([]portmap.Network{n, net1}, publish(l, target4, both("8081->80")...))
	requireReached(l.T, probes("same network", l.c3, 80, target2.IPv4, target2.IPv6)...)
	requireReached(l.T, probes("host", here{}, 80, target2.IPv4, target2.IPv6)...)
	requireReached(l.T, probes("neighbour", l.neighbour, 8081, lan4, lan6)...)
	requireSilent(l.T, slices.Concat(
		probes("out", l.c2, 82, neighbour4, neighbour6),
		probes("to docker0", l.c2, 81, foreign4, foreign6),
		probes("to another network", l.c2, 80, target4.IPv4, target4.IPv6),
		probes("to another network's published port", l.c2, 8081, lan4, lan6, net0.Gateway4, net0.Gateway6),
		probes("in from the neighbour", l.neighbour, 80, target2.IPv4, target2.IPv6),
		probes("in from docker0", l.foreign, 80, target2.IPv4, target2.IPv6),
		probes("in from another network", l.c4, 80, target2.IPv4, target2.IPv6))...)

	// A datagram says enough without an answer. The host's own comes after those
	// that must not, and arrives.
	for _, brNetfilter := range []string{"0", "1"} {
		l.bridgeNetfilter(brNetfilter)
		for _, p := range slices.Concat(
			probes("to another network", l.c2, 80, target4.IPv4, target4.IPv6),
			probes("to another network's published port", l.c2, 8081, lan4, lan6, net0.Gateway4, net0.Gateway6, net1.Gateway4, net1.Gateway6)) {
			if p.network == "udp" {
				_ = send(p.from, p.to) // not every way has a route
				_, _, err := ask(p.from, p.network, p.to, time.Millisecond)
				require.Error(l.T, err, "%s", p)
			}
		}
	}
	requireReached(l.T, probes("host", here{}, 80, target4.IPv4, target4.IPv6)...)
	for _, from := range four.seen() {
		require.False(l.T, net0.Subnet4.Contains(from.Addr()) || net0.Subnet6.Contains(from.Addr()), "a datagram of %s arrived", from)
	}
}

func routed(l *lab) {
	serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80", "udp:81", "tcp:81")
	serve(l.T, l.neighbour, netip.Addr{}, "udp:82", "tcp:82")
	for _, routed4 := range []bool{true, false} {
		n, target := net0, target2
		routedTo, routedHost, natTo, natHost, out, masqueraded := target2.IPv4, lan4, target2.IPv6, lan6, neighbour4, neighbour6
		if routed4 {
			n.Mode4, target.Routed4 = portmap.ModeRouted, true
		} else {
			n.Mode6, target.Routed6 = portmap.ModeRouted, true
			routedTo, natTo, routedHost, natHost, out, masqueraded = natTo, routedTo, natHost, routedHost, masqueraded, out
		}
		l.load([]portmap.Network{n, net1}, publish(l, target, both("8080->80")...))
		requireAnswered(l.T, netip.Addr{}, probes("routed, neighbour", l.neighbour, 80, routedTo)...)
		requireReached(l.T, probes("routed, other network", l.c4, 80, routedTo)...)
		requireAnswered(l.T, netip.Addr{}, probes("nat, neighbour", l.neighbour, 8080, natHost)...)
		requireAnswered(l.T, netip.Addr{}, probes("routed, out", l.c2, 82, out)...)
		requireAnswered(l.T, natHost, probes("nat, out", l.c2, 82, masqueraded)...)
		require.NoError(l.T, echo(l.neighbour, routedTo, answerWait), "ICMP echo to %s", routedTo)
		require.Error(l.T, echo(l.neighbour, natTo, silenceWait), "ICMP echo to %s", natTo)
		requireSilent(l.T, slices.Concat(
			probes("routed, unpublished", l.neighbour, 81, routedTo),
			probes("routed, host port", l.neighbour, 8080, routedHost, routedTo),
			probes("nat, directly", l.neighbour, 80, natTo))...)
		if routed4 {
			requireSilent(l.T, probes("routed, host port", here{}, 8080, localhost4, lan4)...)
		}
	}
}

func natUnprotected(l *lab) {
	n := net0
	n.Mode4, n.Mode6 = portmap.ModeNATUnprotected, portmap.ModeNATUnprotected
	l.load([]portmap.Network{n, net1}, publish(l, target2, both("8080->80")...))
	serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80", "udp:81", "tcp:81")
	serve(l.T, l.c4, netip.Addr{}, "udp:81", "tcp:81")
	requireAnswered(l.T, netip.Addr{}, probes("neighbour", l.neighbour, 8080, lan4, lan6)...)
	requireAnswered(l.T, netip.Addr{}, probes("neighbour, directly", l.neighbour, 81, target2.IPv4, target2.IPv6)...)
	requireSilent(l.T, probes("neighbour, to the other network", l.neighbour, 81, target4.IPv4, target4.IPv6)...)
}

func trusted(l *lab) {
	n := net0
	n.Trusted = []string{"wg7", "lan0"}
	l.load([]portmap.Network{n, net1})
	serve(l.T, l.c2, netip.Addr{}, "udp:81", "tcp:81")
	serve(l.T, l.c4, netip.Addr{}, "udp:81", "tcp:81")
	requireAnswered(l.T, netip.Addr{}, probes("neighbour", l.neighbour, 81, target2.IPv4, target2.IPv6)...)
	requireSilent(l.T, slices.Concat(
		probes("other network", l.c4, 81, target2.IPv4, target2.IPv6),
		probes("neighbour, to the other network", l.neighbour, 81, target4.IPv4, target4.IPv6))...)
}
