package e2e

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/enginetest"
)

// advertisement is that of a router, of its link-local address and for a time
// in seconds (RFC 4861, 4.2).
func advertisement(from netip.Addr, lifetime uint16) []byte {
	everybody := netip.MustParseAddr("ff02::1")
	body := []byte{134, 0, 0, 0, 64, 0, byte(lifetime >> 8), byte(lifetime), 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(body[2:], transportSum(unix.IPPROTO_ICMPV6, from, everybody, body))
	b := []byte{0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255}
	b = append(append(b, from.AsSlice()...), everybody.AsSlice()...)
	return append(b, body...)
}

// requireNoRouter fails if the host goes by a container that says it is a router
// (CVE-2020-13401). It does go by the neighbour, where lan0 is told to.
func (l *closedLab) requireNoRouter() {
	t := l.t
	t.Helper()
	routes := func() string { return l.must("host", "ip", "-6", "route", "show", "default") }
	advertise := func(p *spot, from string, lifetime uint16) {
		everybody := &spot{name: p.name, ns: p.ns, iface: p.iface, own: p.own, router: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}}
		require.NoError(t, everybody.sendFrames([][]byte{advertisement(netip.MustParseAddr(from), lifetime)}))
	}
	// A router believes no other one anyway; a host may.
	forwarding := func(value string) {
		for network := range closedNetworks {
			l.must("host", "sysctl", "-qw", "net.ipv6.conf."+bridgeOf(network)+".forwarding="+value)
		}
	}
	forwarding("0")
	lan := "net.ipv6.conf." + enginetest.HostInterface + ".accept_ra"
	was := l.must("host", "sysctl", "-n", lan)
	l.must("host", "sysctl", "-qw", lan+"=2")
	for _, p := range []*spot{l.a1, l.b1, l.internal1} {
		advertise(p, "fe80::bad", 1800)
	}
	advertise(l.lan, enginetest.PeerLinkLocal, 1800)
	require.NoError(t, enginetest.Poll(patience, func() error {
		if !strings.Contains(routes(), "via "+enginetest.PeerLinkLocal) {
			return errors.New("the neighbour is no router yet")
		}
		return nil
	}))
	require.NotContains(t, routes(), "fe80::bad")
	advertise(l.lan, enginetest.PeerLinkLocal, 0)
	require.NoError(t, enginetest.Poll(patience, func() error {
		if r := routes(); r != "" {
			return errors.New("still there: " + r)
		}
		return nil
	}))
	l.must("host", "sysctl", "-qw", lan+"="+was)
	forwarding("1")
}
