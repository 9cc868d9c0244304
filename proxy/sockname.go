package proxy

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// sockname is a struct sockaddr_in or sockaddr_in6, as the kernel has it.
type sockname [unix.SizeofSockaddrInet6]byte

// newSockname is a with the family of the socket to be connected to it.
func newSockname(a netip.AddrPort) (s sockname, family int, err error) {
	ip := a.Addr().Unmap()
	binary.BigEndian.PutUint16(s[2:], a.Port())
	switch {
	case ip.Is4():
		family = unix.AF_INET
		copy(s[4:8], ip.AsSlice())
	case ip.Is6():
		family = unix.AF_INET6
		copy(s[8:24], ip.AsSlice())
		zone, err := zoneID(ip.Zone())
		if err != nil {
			return s, family, err
		}
		binary.NativeEndian.PutUint32(s[24:], zone)
	default:
		return s, 0, fmt.Errorf("connect to %s: %w", a, unix.EDESTADDRREQ)
	}
	binary.NativeEndian.PutUint16(s[:], uint16(family))
	return s, family, nil
}

func (s *sockname) family() int { return int(binary.NativeEndian.Uint16(s[:])) }

// length is what the kernel wants to be told of it.
func (s *sockname) length() uintptr {
	if s.family() == unix.AF_INET {
		return unix.SizeofSockaddrInet4
	}
	return unix.SizeofSockaddrInet6
}

// addrPort has no zone and is not v4-mapped. It is false if s is not an IP
// address.
func (s *sockname) addrPort() (netip.AddrPort, bool) {
	port := binary.BigEndian.Uint16(s[2:])
	switch s.family() {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s[4:8])), port), true
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s[8:24])).Unmap(), port), true
	}
	return netip.AddrPort{}, false
}

// zoneID is the interface of a zone, which is its number or its name.
func zoneID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("find interface %s: %w", zone, err)
	}
	return uint32(i.Index), nil
}
