package e2e

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// proto is a transport protocol by its number in an IP header.
type proto byte

const (
	tcp  proto = unix.IPPROTO_TCP
	udp  proto = unix.IPPROTO_UDP
	sctp proto = unix.IPPROTO_SCTP
)

var protos = [...]proto{tcp, udp, sctp}

func (p proto) String() string {
	return map[proto]string{tcp: "TCP", udp: "UDP", sctp: "SCTP"}[p]
}

// token is what a packet is known by wherever it arrives: NAT leaves it alone.
type token uint32

// words is a token as a payload, which may come by way of a proxy.
func (t token) words() []byte {
	return binary.BigEndian.AppendUint32([]byte("portolan"), uint32(t))
}

// segment is the first packet of a conversation: a TCP SYN, a UDP datagram, an
// SCTP INIT. Its checksum is right, so that conntrack takes it for valid.
func segment(p proto, src, dst netip.AddrPort, t token) []byte {
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	switch p {
	case tcp:
		b = binary.BigEndian.AppendUint32(b, uint32(t))               // sequence number
		b = append(b, 0, 0, 0, 0, 5<<4, 0x02, 0xff, 0xff, 0, 0, 0, 0) // SYN
		binary.BigEndian.PutUint16(b[16:], transportSum(p, src.Addr(), dst.Addr(), b))
	case udp:
		words := t.words()
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(words)))
		b = append(append(b, 0, 0), words...)
		sum := transportSum(p, src.Addr(), dst.Addr(), b)
		if sum == 0 { // which would mean that there is none
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(b[6:], sum)
	case sctp: // RFC 9260, 3.3.2
		b = append(b, make([]byte, 8)...)                 // tag and checksum
		b = append(b, 1, 0, 0, 20)                        // INIT, and its length
		b = binary.BigEndian.AppendUint32(b, uint32(t))   // initiate tag
		b = append(b, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1) // window, streams, first TSN
		sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
		binary.LittleEndian.PutUint32(b[8:], sum)
	}
	return b
}

// carries says whether a segment is that of a token, or has it as payload.
func carries(p proto, b []byte) (t token, ok bool) {
	if i := bytes.Index(b, []byte("portolan")); i >= 0 && len(b) >= i+12 {
		return token(binary.BigEndian.Uint32(b[i+8:])), true
	}
	switch {
	case p == tcp && len(b) >= 20 && b[13]&0x17 == 0x02: // SYN alone
		return token(binary.BigEndian.Uint32(b[4:])), true
	case p == sctp && len(b) >= 32 && b[12] == 1:
		return token(binary.BigEndian.Uint32(b[16:])), true
	}
	return 0, false
}

// packet is an IP packet of one segment.
func packet(p proto, src, dst netip.AddrPort, t token) []byte {
	body := segment(p, src, dst, t)
	if src.Addr().Is6() {
		b := []byte{0x60, 0, 0, 0, 0, 0, byte(p), 64}
		binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
		b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
		return append(b, body...)
	}
	b := make([]byte, 12, 20+len(body))
	b[0], b[8], b[9] = 0x45, 64, byte(p)
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(body)))
	b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], internetSum(b))
	return append(b, body...)
}

// ethernet is a frame of a packet.
func ethernet(dst, src net.HardwareAddr, packet []byte) []byte {
	etherType := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		etherType = unix.ETH_P_IPV6
	}
	frame := append(append([]byte{}, dst...), src...)
	return append(binary.BigEndian.AppendUint16(frame, etherType), packet...)
}

// transportSum is the checksum of a segment with the pseudo header of its
// addresses.
func transportSum(p proto, src, dst netip.Addr, body []byte) uint16 {
	b := append(src.AsSlice(), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = binary.BigEndian.AppendUint32(b, uint32(p))
	return internetSum(append(b, body...))
}

// internetSum is that of RFC 1071.
func internetSum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
