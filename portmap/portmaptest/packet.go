package portmaptest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"time"

	"github.com/stretchr/testify/require"
)

// sctpInit is an SCTP packet with an INIT chunk (RFC 9260, 3.3.2). Conntrack
// looks at its checksum, so it is right.
func sctpInit(src, dst uint16) []byte {
	b := make([]byte, 32)
	binary.BigEndian.PutUint16(b[0:], src)
	binary.BigEndian.PutUint16(b[2:], dst)
	b[12] = 1                                      // INIT
	binary.BigEndian.PutUint16(b[14:], 20)         // chunk length
	binary.BigEndian.PutUint32(b[16:], 0x706f7274) // initiate tag
	binary.BigEndian.PutUint32(b[20:], 65536)      // receiver window
	binary.BigEndian.PutUint16(b[24:], 1)          // outbound streams
	binary.BigEndian.PutUint16(b[26:], 1)          // inbound streams
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// sctpArrives sends an INIT from the neighbour to a host port and waits for it
// at a container port of c2, with a raw socket at either end, as the kernel may
// have no SCTP. It returns the source address that c2 saw.
func (l *lab) sctpArrives(to netip.Addr, hostPort, port uint16) (netip.Addr, error) {
	network := "ip4:132"
	if to.Is6() {
		network = "ip6:132"
	}
	listen := func(at place) (c net.PacketConn) {
		require.NoError(l.T, at.Do(func() (err error) {
			c, err = net.ListenPacket(network, "")
			return err
		}))
		l.Cleanup(func() { _ = c.Close() })
		return c
	}
	server, client := listen(l.c2), listen(l.neighbour)
	if _, err := client.WriteTo(sctpInit(41_000+hostPort%100, hostPort), &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return netip.Addr{}, err
	}
	if err := server.SetReadDeadline(time.Now().Add(answerWait)); err != nil {
		return netip.Addr{}, err
	}
	buf := make([]byte, 256)
	n, from, err := server.ReadFrom(buf)
	if err != nil {
		return netip.Addr{}, err
	}
	if n < 12 || binary.BigEndian.Uint16(buf[2:]) != port {
		return netip.Addr{}, fmt.Errorf("got %x, not a packet to port %d", buf[:n], port)
	}
	seen, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
	return seen.Unmap(), nil
}

// echo sends an ICMP echo request from a place and waits for the reply.
func echo(from place, to netip.Addr, wait time.Duration) error {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	return from.Do(func() error {
		c, err := net.Dial(network, to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		// Nothing but type and identifier is set, so the checksum is the
		// complement of their sum. The kernel computes that of ICMPv6 itself.
		id := newClientPort()
		b := []byte{request, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
		binary.BigEndian.PutUint16(b[2:], ^(uint16(request)<<8 + id + 1))
		if _, err := c.Write(b); err != nil {
			return err
		}
		for buf := make([]byte, 256); ; {
			// Unlike Read, ReadFrom takes the IPv4 header off.
			n, _, err := c.(net.PacketConn).ReadFrom(buf)
			if err != nil {
				return err
			}
			if n >= 8 && buf[0] == reply && binary.BigEndian.Uint16(buf[4:]) == id {
				return nil
			}
		}
	})
}
