package e2e

import (
	"fmt"
	"net/netip"

	"github.com/portolan/portolan/internal/enginetest"
)

// probe is a packet of each protocol from one spot that another one gets, or
// does not get.
type probe struct {
	from, to *spot
	src      netip.Addr // the sender's own, if it is not valid
	dst      netip.AddrPort
	dial     bool // by a program's socket, not as a frame to the router
}

func (p probe) String() string {
	from := p.from.name
	if p.src.IsValid() {
		from += " as " + p.src.String()
	}
	return fmt.Sprintf("%s, to %s, at %s", from, p.dst, p.to.name)
}

func (p probe) is4() bool { return p.dst.Addr().Is4() }

// as is the same from a source address that is not the sender's. Probes of the
// other family are left out.
func as(probes []probe, addrs ...netip.Addr) (out []probe) {
	for _, a := range addrs {
		for _, p := range probes {
			if p.is4() == a.Is4() {
				p.src = a
				out = append(out, p)
			}
		}
	}
	return out
}

// frames are from each of some spots to a port of each of some addresses. An
// IPv6 address is left out where the sender has none.
func frames(to *spot, port uint16, addrs []netip.Addr, from ...*spot) (out []probe) {
	for _, f := range from {
		for _, a := range addrs {
			if f.addr(a.Is4()).IsValid() {
				out = append(out, probe{from: f, to: to, dst: netip.AddrPortFrom(a, port)})
			}
		}
	}
	return out
}

// dials are the same by sockets of programs.
func dials(to *spot, port uint16, addrs []netip.Addr, from ...*spot) []probe {
	out := frames(to, port, addrs, from...)
	for i := range out {
		out[i].dial = true
	}
	return out
}

func addrs(text ...string) (as []netip.Addr) {
	for _, s := range text {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// both are the addresses of a spot; docker0's containers have IPv4 alone.
func (p *spot) both() []netip.Addr {
	if p.addr6.IsValid() {
		return []netip.Addr{p.addr4, p.addr6}
	}
	return []netip.Addr{p.addr4}
}

func (p *spot) gateways() []netip.Addr {
	return []netip.Addr{p.gateway(true), p.gateway(false)}
}

// closedRow is a line of the table: probes of which none may arrive.
type closedRow struct {
	title    string
	probes   []probe
	byDocker bool   // Docker's own rules close it
	option   bool   // it is about an option of the network
	docker   string // what is to be said of Docker's own driver, where the probes say nothing
}

// rows are the promises.
func (l *closedLab) rows() []closedRow {
	hostAddrs := addrs(enginetest.HostIPv4, enginetest.HostIPv6)
	loopback4 := addrs("127.0.0.1")
	loopback := addrs("127.0.0.1", "::1")
	linkLocal := addrs(enginetest.HostLinkLocal + "%" + enginetest.PeerInterface)
	var rows []closedRow
	row := func(title string, probes ...[]probe) {
		r := closedRow{title: title}
		for _, ps := range probes {
			r.probes = append(r.probes, ps...)
		}
		rows = append(rows, r)
	}

	toLoopbackPort := frames(l.a1, 5301, append(addrs(enginetest.HostIPv4), l.a1.gateway(true)), l.lan)
	row("port on 127.0.0.1 or [::1], from the LAN",
		toLoopbackPort,
		as(toLoopbackPort, append(loopback4, hostAddrs[0], l.a1.gateway(true), l.a2.addr4)...),
		frames(l.a1, 5301, loopback4, l.lan),
		as(frames(l.a1, 5301, loopback4, l.lan), loopback4[0], hostAddrs[0], l.a2.addr4),
		dials(l.a1, 5302, append(hostAddrs[1:], linkLocal...), l.lan),
		frames(l.a1, 5302, loopback[1:], l.lan))
	row("port on 127.0.0.1 or [::1], from containers",
		frames(l.a1, 5301, append(addrs(enginetest.HostIPv4), l.a1.gateway(true)), l.a2, l.b1, l.internal1, l.other),
		frames(l.a1, 5301, loopback4, l.a2, l.b1, l.internal1, l.other),
		as(frames(l.a1, 5301, loopback4, l.a2, l.b1), loopback4[0], hostAddrs[0]),
		dials(l.a1, 5302, []netip.Addr{hostAddrs[1], l.a1.gateway(false)}, l.a2, l.b1),
		frames(l.a1, 5302, loopback[1:], l.a2, l.b1))
	row("port on all addresses, by 127.0.0.1 or ::1 on the wire",
		frames(l.a1, 5300, loopback, l.lan, l.a2, l.b1, l.internal1, l.other))
	row("port on one address of the host, by its others",
		frames(l.a1, 5303, append(addrs(vpn4, vpn6, enginetest.HostIPv6), l.a1.gateways()...), l.lan, l.b1))

	direct := func(from ...*spot) (ps []probe) {
		ps = append(ps, frames(l.a1, 7000, l.a1.both(), from...)...)
		ps = append(ps, frames(l.a1, 7001, l.a1.both(), from...)...)
		return append(ps, frames(l.a2, 7000, l.a2.both(), from...)...)
	}
	row("container's own address, by routing from the LAN", direct(l.lan))
	row("container's own address, from the LAN with another source",
		as(direct(l.lan), append(loopback, hostAddrs...)...),
		as(direct(l.lan), append(l.a1.gateways(), l.b1.both()...)...),
		as(direct(l.lan), append(addrs(vpn4, "fe80::2"), l.trusted1.both()...)...),
		as(frames(l.a2, 7000, l.a2.both(), l.lan), l.a1.both()...),
		as(frames(l.a1, 7001, l.a1.both(), l.lan), l.a2.both()...))
	row("container of another network", direct(l.b1, l.trusted1),
		frames(l.b1, 7001, l.b1.both(), l.a1), frames(l.b1, 7000, l.b1.both(), l.a2))
	row("container of another network, with another source",
		as(direct(l.b1), append(l.a1.gateways(), hostAddrs...)...),
		as(frames(l.a1, 7001, l.a1.both(), l.b1), append(l.a2.both(), l.lan.both()...)...),
		as(direct(l.b1), append(loopback, addrs("fe80::2", "192.0.2.2")...)...))
	row("from Docker's own containers", direct(l.other))
	// Docker opens the container port of a published one to direct routing.
	row("to an unpublished port of Docker's own containers", frames(l.other, 7001, l.other.both(), l.a1, l.b1))
	rows[len(rows)-1].byDocker = true

	row("service of the host on 127.0.0.1 or [::1], from the LAN and from containers",
		frames(l.ours, 9000, append(loopback, addrs("127.0.0.2")...), l.lan, l.a1, l.b1, l.internal1, l.other),
		as(frames(l.ours, 9000, loopback, l.lan, l.a1), append(loopback, hostAddrs...)...))
	row("service of the host on a port that a container publishes",
		frames(l.ours, 5300, hostAddrs, l.lan, l.b1), frames(l.ours, 5300, l.a1.gateways(), l.a2))
	rows[len(rows)-1].docker = "has docker-proxy there"
	// From the LAN, IPv6 admits the host's own addresses; that is no bridge of ours.
	row("service of the host that trusts its own addresses, or 127.0.0.0/8",
		as(frames(l.ours, 9001, hostAddrs, l.lan, l.a1, l.internal1, l.other), addrs("127.0.0.1", "127.0.0.2", "::1", enginetest.HostIPv4)...),
		as(frames(l.ours, 9001, hostAddrs, l.a1, l.internal1), hostAddrs[1], l.a1.gateway(false), l.internal1.gateway(false)),
		as(frames(l.ours, 9001, l.a1.gateways(), l.a1), append(addrs("127.0.0.1", "127.0.0.2", "::1"), l.a1.gateways()...)...),
		as(frames(l.b1, 5400, hostAddrs, l.a1), append(hostAddrs, addrs("127.0.0.2")...)...))
	row("published port by the host's link-local address, from the LAN",
		dials(l.a1, 5300, linkLocal, l.lan), as(frames(l.a1, 5300, hostAddrs, l.lan), addrs("fe80::2")...))

	row("into an internal network",
		frames(l.internal1, 7000, l.internal1.both(), l.lan, l.a1, l.b1, l.other),
		frames(l.internal1, 5500, hostAddrs, l.lan, l.a1),
		as(frames(l.internal1, 7000, l.internal1.both(), l.lan, l.a1), append(l.internal1.gateways(), hostAddrs...)...))
	row("out of an internal network",
		frames(l.lan, 9002, l.lan.both(), l.internal1),
		frames(l.a1, 7000, l.a1.both(), l.internal1), frames(l.a1, 7001, l.a1.both(), l.internal1),
		frames(l.a1, 5300, append(hostAddrs, l.internal1.gateways()...), l.internal1),
		frames(l.other, 7000, l.other.both(), l.internal1), frames(l.other, 7001, l.other.both(), l.internal1),
		as(frames(l.a1, 7001, l.a1.both(), l.internal1), append(l.a2.both(), hostAddrs...)...),
		as(frames(l.lan, 9002, l.lan.both(), l.internal1), append(l.a2.both(), hostAddrs...)...))
	row("container that publishes nothing and trusts one interface, by the others",
		frames(l.trusted1, 7000, l.trusted1.both(), l.lan, l.a1, l.b1, l.other),
		as(frames(l.trusted1, 7000, l.trusted1.both(), l.lan, l.b1), addrs("192.0.2.2", "2001:db8:2::2", vpn4, vpn6)...))
	rows[len(rows)-1].option = true
	row("container of a network that does not, from the trusted interface", direct(l.friend))
	row("to the LAN with a source that is not the container's",
		as(frames(l.lan, 9002, l.lan.both(), l.a1), append(l.b1.both(), addrs("203.0.113.9", "2001:db8:9::9")...)...))
	return rows
}

// open are the probes that show that those of rows would arrive if they were
// let in: from every sender, and to every receiver.
func (l *closedLab) open() []probe {
	hostAddrs := addrs(enginetest.HostIPv4, enginetest.HostIPv6)
	var ps []probe
	add := func(more []probe) { ps = append(ps, more...) }
	add(frames(l.a1, 5300, hostAddrs, l.lan, l.friend, l.a2, l.b1, l.trusted1, l.other))
	add(dials(l.a1, 5300, hostAddrs, l.lan, l.a2, l.b1))
	add(frames(l.b1, 5400, hostAddrs, l.lan, l.a1, l.a2))
	add(frames(l.ours, 9001, hostAddrs, l.lan, l.b1))
	for _, p := range []*spot{l.a1, l.internal1} {
		add(frames(l.ours, 9001, p.gateways(), p))
	}
	add(frames(l.ours, 9001, []netip.Addr{l.other.gateway(true)}, l.other))
	add(frames(l.lan, 9002, l.lan.both(), l.a1))
	add(dials(l.a1, 5301, addrs("127.0.0.1"), l.ours))
	add(dials(l.a1, 5303, hostAddrs[:1], l.lan))
	for _, p := range []*spot{l.a2, l.internal1, l.trusted1, l.other} {
		add(dials(p, 7000, p.both(), l.ours))
	}
	return append(ps, l.trusting()...)
}

// trusting are the probes that show that the engine knows the option.
func (l *closedLab) trusting() []probe { return frames(l.trusted1, 7000, l.trusted1.both(), l.friend) }
