package proxy

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// unreachable sends "port unreachable" to clients of backends that have sent it
// to us (RFC 792; RFC 4443 section 3.1), as where the kernel translates: a
// client's connected socket says "connection refused" then, and need not wait
// for an answer that never comes.
//
// It takes CAP_NET_RAW, and is silent without. The zero value has no socket yet.
type unreachable struct{ socket4, socket6 rawSocket }

// tell answers a datagram from client to local; ifindex is that of a link-local
// address.
func (u *unreachable) tell(client, local netip.AddrPort, ifindex uint32) {
	if client.Addr().Is4() {
		u.socket4.send(unix.AF_INET, unix.IPPROTO_ICMP, portUnreachable4(client, local),
			pktinfo{src: local.Addr()}.source(0), &unix.SockaddrInet4{Addr: client.Addr().As4()})
		return
	}
	u.socket6.send(unix.AF_INET6, unix.IPPROTO_ICMPV6, portUnreachable6(client, local),
		pktinfo{src: local.Addr()}.source(ifindex), &unix.SockaddrInet6{Addr: client.Addr().As16(), ZoneId: ifindex})
}

func (u *unreachable) close() {
	u.socket4.close()
	u.socket6.close()
}

// quoted is the header of the datagram that is answered, by which the client's
// host finds the socket. Its length is not known any more.
func quoted(client, local netip.AddrPort) []byte {
	b := binary.BigEndian.AppendUint16(nil, client.Port())
	b = binary.BigEndian.AppendUint16(b, local.Port())
	return append(b, 0, 8, 0, 0)
}

func portUnreachable4(client, local netip.AddrPort) []byte {
	h := ipv4.Header{
		Version: ipv4.Version, Len: ipv4.HeaderLen, TotalLen: ipv4.HeaderLen + 8, TTL: 1, Protocol: unix.IPPROTO_UDP,
		Src: client.Addr().AsSlice(), Dst: local.Addr().AsSlice(),
	}
	ip, err := h.Marshal()
	if err != nil {
		return nil
	}
	return marshal(ipv4.ICMPTypeDestinationUnreachable, 3, append(ip, quoted(client, local)...))
}

func portUnreachable6(client, local netip.AddrPort) []byte {
	ip := []byte{6 << 4, 0, 0, 0, 0, 8, unix.IPPROTO_UDP, 1} // RFC 8200 section 3
	ip = append(ip, client.Addr().AsSlice()...)
	ip = append(ip, local.Addr().AsSlice()...)
	return marshal(ipv6.ICMPTypeDestinationUnreachable, 4, append(ip, quoted(client, local)...))
}

// marshal leaves the checksum of ICMPv6 to the kernel (RFC 3542 section 3.1).
func marshal(t icmp.Type, code int, quote []byte) []byte {
	m := icmp.Message{Type: t, Code: code, Body: &icmp.DstUnreach{Data: quote}}
	b, err := m.Marshal(nil)
	if err != nil {
		return nil
	}
	return b
}

// rawSocket is opened by its first message.
type rawSocket struct {
	fd     int
	opened bool
}

// send is best effort, as ICMP is.
func (s *rawSocket) send(family, proto int, message, oob []byte, to unix.Sockaddr) {
	if !s.opened {
		s.opened = true
		s.fd = openRaw(family, proto)
	}
	if s.fd >= 0 && message != nil {
		_, _ = unix.SendmsgN(s.fd, message, oob, to, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
}

// openRaw is a socket that receives nothing, or -1.
func openRaw(family, proto int) int {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return -1
	}
	// Otherwise every ICMP message of the host waits here until the buffer is full.
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	_ = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
	return fd
}

func (s *rawSocket) close() {
	if s.opened && s.fd >= 0 {
		_ = unix.Close(s.fd)
	}
	*s = rawSocket{}
}
