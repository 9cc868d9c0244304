package portmaptest

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/portmap"
)

// closedNet0 is net0 without communication between its containers.
func closedNet0() portmap.Network {
	n := net0
	n.NoICC = true
	return n
}

// closePorts does what a driver does with the ports of net0.
func (l *lab) closePorts() {
	l.Helper()
	for _, name := range []string{"veth2", "veth3"} {
		link, err := netlink.LinkByName(name)
		require.NoError(l.T, err)
		require.NoError(l.T, netlink.LinkSetGroup(link, portmap.PortGroup))
		l.Cleanup(func() { require.NoError(l.T, netlink.LinkSetGroup(link, 0)) })
	}
}

// noICC wants published ports to be open to the containers of their own
// network, and every other way between those to be closed.
func noICC(brNetfilter string) func(*lab) {
	return func(l *lab) {
		l.bridgeNetfilter(brNetfilter)
		l.closePorts()
		two := serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
		serve(l.T, l.c3, netip.Addr{}, "udp:80", "tcp:80")
		serve(l.T, l.neighbour, netip.Addr{}, "udp:82", "tcp:82")
		ports := []portmap.Publication{
			publish(l, target2, both("8080->80")...),
			publish(l, target3, slices.Concat(both("198.51.100.1:9000->80"), both("[2001:db8:1::1]:9000->80"))...),
		}

		l.publish(ports...)
		require.False(l.T, portmap.PortsApart(), "no network wants it")
		requireReached(l.T, probes("before", l.c3, 80, target2.IPv4, target2.IPv6)...)
		requireReached(l.T, probes("host", here{}, 80, target2.IPv4, target2.IPv6)...)
		frames := slices.Concat(l.frames(), l.replies())
		require.Equal(l.T, names(frames), l.arrived(frames), "every frame arrives where containers may talk")

		l.load([]portmap.Network{closedNet0(), net1}, ports...)
		require.True(l.T, portmap.PortsApart())
		hairpin := func() {
			l.Helper()
			requireReached(l.T, probes("itself", l.c2, 8080, lan4, lan6, net0.Gateway4, net0.Gateway6)...)
			requireReached(l.T, probes("its neighbour", l.c3, 8080, lan4, lan6, net0.Gateway4, net0.Gateway6)...)
			requireReached(l.T, probes("itself, one address", l.c3, 9000, lan4, lan6)...)
			requireReached(l.T, probes("its neighbour, one address", l.c2, 9000, lan4, lan6)...)
		}
		// Without what was known before: neighbour discovery works with the host.
		l.neighbours("flush", "dev", "eth0")
		hairpin()
		requireReached(l.T, probes("neighbour", l.neighbour, 8080, lan4, lan6)...)
		requireReached(l.T, probes("another network", l.c4, 8080, lan4, lan6)...)
		requireReached(l.T, probes("out", l.c3, 82, neighbour4, neighbour6)...)
		requireReached(l.T, probes("host", here{}, 80, target2.IPv4, target2.IPv6)...)

		frames = slices.Concat(l.frames(), l.replies())
		require.Empty(l.T, l.arrived(frames), "frames to a neighbour")
		seen := len(two.seen())
		silent := func(how string) {
			l.Helper()
			requireSilent(l.T, probes("a neighbour that it "+how, l.c3, 80, target2.IPv4, target2.IPv6)...)
			require.Error(l.T, echo(l.c3, target2.IPv4, silenceWait), "ICMP echo to a neighbour that it %s", how)
			require.Len(l.T, two.seen(), seen, "a datagram to a neighbour that it %s", how)
		}
		silent("looks for")
		l.Cleanup(func() {
			l.neighbours("del", target2.IPv4.String(), "dev", "eth0")
			l.neighbours("del", target2.IPv6.String(), "dev", "eth0")
		})
		for how, mac := range map[string]string{"knows": l.mac(l.c2, "eth0").String(), "takes for the host": l.mac(here{}, "plbr0").String(), "takes for nobody": "02:42:00:00:00:99"} {
			for _, to := range []string{target2.IPv4.String(), target2.IPv6.String()} {
				l.neighbours("replace", to, "lladdr", mac, "dev", "eth0")
			}
			silent(how)
		}
		hairpin()

		n := closedNet0()
		n.Internal = true
		l.load([]portmap.Network{n, net1})
		require.Empty(l.T, l.arrived(frames), "frames to a neighbour of an internal network")
		requireReached(l.T, probes("host", here{}, 80, target2.IPv4, target2.IPv6)...)

		// The mark that lets a packet through is no one's to bring along.
		run(l.T, "nft", "add table bridge stranger; add chain bridge stranger prerouting { type filter hook prerouting priority -300; };"+
			fmt.Sprintf("add rule bridge stranger prerouting meta mark set %d", portmap.MarkBit))
		l.Cleanup(func() { run(l.T, "nft", "delete table bridge stranger") })
		require.Empty(l.T, l.arrived(frames), "marked frames to a neighbour")
	}
}

// noICCElsewhere has two networks, of which one is closed.
func noICCElsewhere(l *lab) {
	n := net1
	n.NoICC = true
	serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
	l.load([]portmap.Network{net0, n}, publish(l, target2, both("8080->80")...))
	require.True(l.T, portmap.PortsApart())
	requireReached(l.T, probes("host", here{}, 80, target2.IPv4, target2.IPv6)...)
	for _, brNetfilter := range []string{"0", "1"} {
		l.bridgeNetfilter(brNetfilter)
		frames := l.frames()
		require.Equal(l.T, names(frames), l.arrived(frames))
		requireAnswered(l.T, netip.Addr{}, probes("container to container", l.c3, 80, target2.IPv4, target2.IPv6)...)
	}
}
