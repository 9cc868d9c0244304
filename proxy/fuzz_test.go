package proxy

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// FuzzDatagram reads any name and any control messages as those of a datagram.
// Nothing panics; what comes out are addresses that can be answered from, and
// reads the same after it has been written.
func FuzzDatagram(f *testing.F) {
	for _, a := range []string{"192.0.2.1:53", "[2001:db8::1]:5353", "[fe80::1%1]:53", "127.0.0.1:65535"} {
		to := netip.MustParseAddrPort(a)
		name, _, err := newSockname(to)
		require.NoError(f, err)
		f.Add(name[:], pktinfo{src: to.Addr()}.source(2))
	}
	four := unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: 2, Spec_dst: [4]byte{192, 0, 2, 1}, Addr: [4]byte{192, 0, 2, 255}})
	six := unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: 2, Addr: netip.MustParseAddr("ff02::1").As16()})
	f.Add([]byte{unix.AF_INET, 0}, four)
	f.Add([]byte{unix.AF_INET6, 0}, six)
	f.Add([]byte{unix.AF_UNIX, 0}, append(six, four...))
	f.Add([]byte{unix.AF_INET6, 0}, origdst(7000))
	bound := netip.MustParseAddrPort("[::]:53")
	f.Fuzz(func(t *testing.T, name, oob []byte) {
		var s sockname
		copy(s[:], name)
		if from, ok := s.addrPort(); ok {
			require.Empty(t, from.Addr().Zone())
			require.False(t, from.Addr().Is4In6())
			again, family, err := newSockname(from)
			require.NoError(t, err)
			require.Equal(t, family, again.family())
			back, ok := again.addrPort()
			require.True(t, ok)
			require.Equal(t, from, back)
		}

		info := parsePktinfo(oob, bound)
		for _, a := range []netip.Addr{info.src, info.dst} {
			require.True(t, a.IsValid())
			require.Empty(t, a.Zone())
			require.False(t, a.Is4In6())
		}
		require.False(t, info.src.IsMulticast() && info.src == info.dst && info.dst.Is6(), "no reply leaves from a group's address")
		reply := info.source(info.ifindex)
		if again := parsePktinfo(reply, bound); info.src.Is6() && !info.src.IsUnspecified() {
			require.Equal(t, pktinfo{dst: info.src, port: bound.Port(), src: info.src, ifindex: info.ifindex}, again)
		}
	})
}

// origdst is the control message of a steered datagram.
func origdst(port uint16) []byte {
	b := make([]byte, unix.CmsgSpace(unix.SizeofSockaddrInet6))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_IPV6, unix.IPV6_ORIGDSTADDR
	h.SetLen(unix.CmsgLen(unix.SizeofSockaddrInet6))
	binary.BigEndian.PutUint16(b[unix.CmsgLen(0)+2:], port)
	return b
}
