package portmaptest

import (
	"bytes"
	"net"
	"net/netip"
	"slices"

	"github.com/stretchr/testify/require"
)

// frame is one Ethernet frame, with its name somewhere in it.
type frame struct {
	name string
	raw  []byte
}

func names(frames []frame) []string {
	var all []string
	for _, f := range frames {
		all = append(all, f.name)
	}
	return all
}

// frames are all ways from c3 to c2 without a published port.
func (l *lab) frames() (fs []frame) {
	mac := func(s string) net.HardwareAddr {
		m, err := net.ParseMAC(s)
		require.NoError(l.T, err)
		return m
	}
	own, two := l.mac(l.c3, "eth0"), l.mac(l.c2, "eth0")
	bridge, port := l.mac(here{}, "plbr0"), l.mac(here{}, "veth3")
	everybody := mac("ff:ff:ff:ff:ff:ff")
	src4, src6 := netip.AddrPortFrom(target3.IPv4, 41_000), netip.AddrPortFrom(target3.IPv6, 41_000)
	dst4, dst6 := netip.AddrPortFrom(target2.IPv4, 81), netip.AddrPortFrom(target2.IPv6, 81)
	add := func(name string, dst net.HardwareAddr, etherType uint16, payload func(name []byte) []byte) {
		name = "[" + name + "]"
		fs = append(fs, frame{name, ethernet(dst, own, etherType, payload([]byte(name)))})
	}
	ip4 := func(to netip.AddrPort) func([]byte) []byte {
		return func(name []byte) []byte { return udp4(src4, to, name) }
	}
	ip6 := func(to netip.AddrPort) func([]byte) []byte {
		return func(name []byte) []byte { return udp6(src6, to, name) }
	}
	arp := func(name []byte) []byte { return append(arpRequest(own, target3.IPv4, target2.IPv4), name...) }
	vlan := func(name []byte) []byte { return tagged(typeIPv4, udp4(src4, dst4, name)) }
	plain := func(name []byte) []byte { return name }
	to := func(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), 81) }

	add("IPv4", two, typeIPv4, ip4(dst4))
	add("IPv6", two, typeIPv6, ip6(dst6))
	add("ARP", two, typeARP, arp)
	add("VLAN", two, typeVLAN, vlan)
	add("another protocol", two, typeExperimental, plain)
	add("IPv4 to the bridge", bridge, typeIPv4, ip4(dst4))
	add("IPv6 to the bridge", bridge, typeIPv6, ip6(dst6))
	add("IPv4 to the port", port, typeIPv4, ip4(dst4))
	add("IPv6 to the port", port, typeIPv6, ip6(dst6))
	add("IPv4 to nobody", mac("02:42:00:00:00:99"), typeIPv4, ip4(dst4))
	add("another protocol to nobody", mac("02:42:00:00:00:99"), typeExperimental, plain)
	add("IPv4 to everybody", everybody, typeIPv4, ip4(dst4))
	add("IPv4 broadcast", everybody, typeIPv4, ip4(to("255.255.255.255")))
	add("ARP broadcast", everybody, typeARP, arp)
	add("VLAN broadcast", everybody, typeVLAN, vlan)
	add("another protocol, broadcast", everybody, typeExperimental, plain)
	add("IPv4 multicast", mac("01:00:5e:00:00:fb"), typeIPv4, ip4(to("224.0.0.251")))
	add("IPv6 multicast", mac("33:33:00:00:00:01"), typeIPv6, ip6(to("ff02::1")))
	add("bridge group address", mac("01:80:c2:00:00:00"), typeExperimental, plain)
	return fs
}

// replies are answers of c3 to clients of its published port that it sends to
// c2's MAC address in place of the host's: conntrack knows their flows as
// translated ones.
func (l *lab) replies() (fs []frame) {
	own, two := l.mac(l.c3, "eth0"), l.mac(l.c2, "eth0")
	for _, client := range []struct {
		name string
		from place
		addr netip.Addr
		to   netip.Addr
	}{
		{"[reply to the neighbour, IPv4]", l.neighbour, neighbour4, lan4},
		{"[reply to the neighbour, IPv6]", l.neighbour, neighbour6, lan6},
		{"[reply to the host, IPv4]", here{}, net0.Gateway4, lan4},
		{"[reply to the host, IPv6]", here{}, net0.Gateway6, lan6},
	} {
		var port uint16
		require.NoError(l.T, client.from.Do(func() error {
			from := net.UDPAddrFromAddrPort(netip.AddrPortFrom(client.addr, 0))
			c, err := net.DialUDP("udp", from, net.UDPAddrFromAddrPort(netip.AddrPortFrom(client.to, 9000)))
			if err != nil {
				return err
			}
			defer c.Close()
			port = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			_, err = c.Write([]byte("?"))
			return err
		}))
		src, dst := netip.AddrPortFrom(target3.IPv4, 80), netip.AddrPortFrom(client.addr, port)
		raw := ethernet(two, own, typeIPv4, udp4(src, dst, []byte(client.name)))
		if client.addr.Is6() {
			src = netip.AddrPortFrom(target3.IPv6, 80)
			raw = ethernet(two, own, typeIPv6, udp6(src, dst, []byte(client.name)))
		}
		fs = append(fs, frame{client.name, raw})
	}
	return fs
}

// arrived sends frames from c3 and returns the names of those that c2 gets, in
// order. The last one is the host's and always arrives; the others are through
// by then, or dropped, if the host knows its neighbours.
func (l *lab) arrived(frames []frame) (got []string) {
	l.Helper()
	last := []byte("[the last one]")
	err := receiveRaw(l.c2, "eth0", func() error {
		for _, f := range frames {
			if err := sendRaw(l.c3, "eth0", f.raw); err != nil {
				return err
			}
		}
		c, err := net.Dial("udp", netip.AddrPortFrom(target2.IPv4, 81).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(last)
		return err
	}, func(raw []byte) bool {
		for _, f := range frames {
			if bytes.Contains(raw, []byte(f.name)) && !slices.Contains(got, f.name) {
				got = append(got, f.name)
			}
		}
		return bytes.Contains(raw, last)
	})
	require.NoError(l.T, err)
	return got
}

// neighbours changes the neighbour table of c3.
func (l *lab) neighbours(args ...string) {
	l.Helper()
	require.NoError(l.T, l.c3.Do(func() error {
		run(l.T, append([]string{"ip", "neighbour"}, args...)...)
		return nil
	}))
}

func (l *lab) mac(at place, iface string) net.HardwareAddr {
	l.Helper()
	mac, err := hardwareAddr(at, iface)
	require.NoError(l.T, err)
	return mac
}
