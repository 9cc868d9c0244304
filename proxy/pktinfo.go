package proxy

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// pktinfo is what control messages say of a received datagram: IP_PKTINFO,
// IPV6_PKTINFO and, of a steered one, IP_ORIGDSTADDR and IPV6_ORIGDSTADDR (ip(7),
// RFC 3542 section 6). Addresses have no zone and are not v4-mapped.
type pktinfo struct {
	dst     netip.Addr // destination in the header
	port    uint16     // the same
	src     netip.Addr // to answer from: dst, or unspecified if dst is a group's
	ifindex uint32     // where it came in
}

// parsePktinfo reads control messages. What they leave open is bound, the
// socket's own address. It allocates nothing.
func parsePktinfo(oob []byte, bound netip.AddrPort) pktinfo {
	info := pktinfo{dst: bound.Addr(), port: bound.Port(), src: bound.Addr()}
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			info.ifindex = binary.NativeEndian.Uint32(data)
			info.src = netip.AddrFrom4([4]byte(data[4:8])) // ipi_spec_dst
			info.dst = netip.AddrFrom4([4]byte(data[8:12]))
			if info.src != info.dst {
				// Broadcast or multicast. What the kernel proposes is right for
				// the route to the client, which need not be the interface that
				// the datagram came by; sendmsg(2) with the interface knows better.
				info.src = netip.IPv4Unspecified()
			}
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			// An IPv4 datagram brings this too; IP_PKTINFO follows and wins.
			info.dst = netip.AddrFrom16([16]byte(data[:16])).Unmap()
			info.src = info.dst
			if info.dst.IsMulticast() {
				info.src = netip.IPv6Unspecified()
			}
			info.ifindex = binary.NativeEndian.Uint32(data[16:20])
		case h.Level == unix.SOL_IP && h.Type == unix.IP_ORIGDSTADDR && len(data) >= 4,
			h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_ORIGDSTADDR && len(data) >= 4:
			info.port = binary.BigEndian.Uint16(data[2:]) // of a sockaddr
		}
		oob = rest
	}
	return info
}

// scoped says whether dst means something on one interface only.
func (i pktinfo) scoped() bool { return i.src.IsUnspecified() || needsZone(i.dst) }

// source is the control message that has a reply leave from src (if that is
// unspecified, the kernel chooses), and by an interface if ifindex is not 0.
func (i pktinfo) source(ifindex uint32) []byte {
	if i.src.Is4() {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(ifindex), Spec_dst: i.src.As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: ifindex, Addr: i.src.As16()})
}

// needsZone says whether a is an IPv6 link-local address.
func needsZone(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }
