package portmaptest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// sendFrame sends one UDP datagram from a place in an Ethernet frame to the MAC
// address of a router, whatever the place's own routing thinks of to.
func sendFrame(from place, iface string, router net.HardwareAddr, src, to netip.AddrPort) error {
	own, err := hardwareAddr(from, iface)
	if err != nil {
		return err
	}
	return sendRaw(from, iface, ethernet(router, own, typeIPv4, udp4(src, to, nil)))
}

// sendRaw sends whole Ethernet frames.
func sendRaw(from place, iface string, frames ...[]byte) error {
	return from.Do(func() error {
		index, err := interfaceIndex(iface)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		defer unix.Close(fd)
		for _, frame := range frames {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}); err != nil {
				return err
			}
		}
		return nil
	})
}

// receiveRaw calls seen with every frame that comes to an interface while send
// runs and after it, until seen says that it was the last one.
func receiveRaw(at place, iface string, send func() error, seen func(frame []byte) (last bool)) error {
	var c *os.File
	err := at.Do(func() error {
		index, err := interfaceIndex(iface)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		c = os.NewFile(uintptr(fd), "packet socket")
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
	})
	if c != nil {
		defer c.Close()
	}
	if err != nil {
		return err
	}
	if err := send(); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(answerWait)); err != nil {
		return err
	}
	for buf := make([]byte, 2048); ; {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		if seen(buf[:n]) {
			return nil
		}
	}
}

func htons(n uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n)) }

// Values of EtherType.
const (
	typeIPv4         = unix.ETH_P_IP
	typeARP          = unix.ETH_P_ARP
	typeVLAN         = unix.ETH_P_8021Q
	typeIPv6         = unix.ETH_P_IPV6
	typeExperimental = 0x88b5 // for local use (IEEE 802)
)

func ethernet(dst, src net.HardwareAddr, etherType uint16, payload []byte) []byte {
	frame := append(append([]byte{}, dst...), src...)
	return append(binary.BigEndian.AppendUint16(frame, etherType), payload...)
}

// tagged is a payload with the tag of VLAN 5.
func tagged(etherType uint16, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0, 5}, etherType), payload...)
}

// arpRequest asks who has an address.
func arpRequest(mac net.HardwareAddr, src, who netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, request
	b = append(append(b, mac...), src.AsSlice()...)
	return append(append(b, make([]byte, 6)...), who.AsSlice()...)
}

// udp4 is an IPv4 packet with a datagram, which needs no UDP checksum.
func udp4(src, to netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 20)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	copy(b[12:], src.Addr().AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	return append(b, udp(src, to, payload)...)
}

// udp6 is an IPv6 packet with a datagram without a checksum, which is enough
// for a bridge and a router.
func udp6(src, to netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 8)
	b[0], b[6], b[7] = 0x60, unix.IPPROTO_UDP, 64
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	b = append(append(b, src.Addr().AsSlice()...), to.Addr().AsSlice()...)
	return append(b, udp(src, to, payload)...)
}

func udp(src, to netip.AddrPort, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

func hardwareAddr(at place, iface string) (mac net.HardwareAddr, err error) {
	err = at.Do(func() error {
		link, err := net.InterfaceByName(iface)
		if err == nil {
			mac = link.HardwareAddr
		}
		return err
	})
	return mac, err
}

func interfaceIndex(name string) (int, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	return link.Index, nil
}
