package netnstest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flood is packets from many spoofed sources, which have no payload.
type Flood struct {
	Iface  string           // of the host that sends
	Router net.HardwareAddr // who gets the frames
	To     netip.AddrPort   // IPv4
	TCP    bool             // SYNs, in place of UDP
	First  uint32           // number of the first source
	Count  int              // of sources; there are 2^24 of them
}

// floodBatch is how many packets are sent by one call.
const floodBatch = 256

// mmsghdr is what sendmmsg(2) takes.
type mmsghdr struct {
	unix.Msghdr
	_ uint32 // how many bytes were sent
}

// Send sends one packet from each source: the address 10.0.0.0 and a number.
// What the interface has no room for is sent again.
func (f Flood) Send(h *Host) error {
	return h.Do(func() error {
		link, err := net.InterfaceByName(f.Iface)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index}); err != nil {
			return fmt.Errorf("bind packet socket to %s: %w", f.Iface, err)
		}
		var frames [floodBatch][]byte
		var iovs [floodBatch]unix.Iovec
		var msgs [floodBatch]mmsghdr
		for i := range frames {
			frames[i] = f.frame(link.HardwareAddr)
			iovs[i].Base = &frames[i][0]
			iovs[i].SetLen(len(frames[i]))
			msgs[i].Iov = &iovs[i]
			msgs[i].SetIovlen(1)
		}
		for sent := 0; sent < f.Count; {
			n := min(floodBatch, f.Count-sent)
			for i := range n {
				f.source(frames[i], f.First+uint32(sent+i))
			}
			for done := 0; done < n; {
				k, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[done])), uintptr(n-done), 0, 0, 0)
				switch errno {
				case 0:
					done += int(k)
				case unix.ENOBUFS, unix.EINTR, unix.EAGAIN:
				default:
					return fmt.Errorf("send packets: %w", errno)
				}
			}
			sent += n
		}
		return nil
	})
}

const ethernetLen, ip4Len = 14, 20

// frame is a packet without its source.
func (f Flood) frame(own net.HardwareAddr) []byte {
	b := append(append([]byte{}, f.Router...), own...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	proto, l4 := byte(unix.IPPROTO_UDP), []byte{0, 0, 0, 0, 0, 8, 0, 0} // IPv4 needs no UDP checksum
	if f.TCP {
		proto, l4 = unix.IPPROTO_TCP, make([]byte, 20)
		l4[12], l4[13] = 5<<4, 1<<1 // length, SYN
		binary.BigEndian.PutUint16(l4[14:], 65535)
	}
	binary.BigEndian.PutUint16(l4[2:], f.To.Port())
	ip := make([]byte, ip4Len)
	ip[0], ip[8], ip[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(ip[2:], uint16(ip4Len+len(l4)))
	copy(ip[16:], f.To.Addr().AsSlice())
	return append(append(b, ip...), l4...)
}

// source fills in a source and the checksums.
func (f Flood) source(frame []byte, n uint32) {
	ip := frame[ethernetLen:][:ip4Len]
	l4 := frame[ethernetLen+ip4Len:]
	binary.BigEndian.PutUint32(ip[12:], 10<<24|n&(1<<24-1))
	binary.BigEndian.PutUint16(l4, uint16(1024+n%60000))
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip)))
	if f.TCP {
		l4[16], l4[17] = 0, 0
		pseudo := sum(ip[12:20]) + uint32(ip[9]) + uint32(len(l4))
		binary.BigEndian.PutUint16(l4[16:], ^fold(pseudo+sum(l4)))
	}
}

func sum(b []byte) (s uint32) {
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

func fold(s uint32) uint16 {
	s = s>>16 + s&0xffff
	return uint16(s + s>>16)
}
