package proxy

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// bufferSize is the limit of each socket's kernel buffers, in bytes. It is a
// limit and no allocation, so an idle socket costs nothing; the usual 208 KiB
// hold 270 small datagrams, and one burst of a busy client is more.
const bufferSize = 4 << 20

// enlargeBuffers does what it is allowed to: without CAP_NET_ADMIN the limit is
// net.core.rmem_max, and a proxy with small buffers is still a proxy.
func enlargeBuffers(fd int) {
	for _, opt := range [...]struct{ force, plain int }{
		{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF},
		{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
	} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt.force, bufferSize) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt.plain, bufferSize)
		}
	}
}

// enablePktinfo has every datagram bring its destination. A dual-stack socket
// needs both options: IPV6_PKTINFO of an IPv4 datagram does not tell whether the
// destination is a broadcast address, from which nothing can be answered.
func enablePktinfo(fd int) error {
	return enable(fd, option{"IP_PKTINFO", unix.IP_PKTINFO}, option{"IPV6_RECVPKTINFO", unix.IPV6_RECVPKTINFO})
}

// enableOrigDst has every datagram bring the port that it was sent to.
func enableOrigDst(fd int) error {
	return enable(fd, option{"IP_RECVORIGDSTADDR", unix.IP_RECVORIGDSTADDR},
		option{"IPV6_RECVORIGDSTADDR", unix.IPV6_RECVORIGDSTADDR})
}

type option struct {
	name   string
	number int
}

// enable sets an option for each family that the socket has.
func enable(fd int, opt4, opt6 option) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("ask for SO_DOMAIN: %w", err)
	}
	if domain == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, opt6.number, 1); err != nil {
			return fmt.Errorf("set %s: %w", opt6.name, err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, opt4.number, 1); err != nil {
		return fmt.Errorf("set %s: %w", opt4.name, err)
	}
	return nil
}

// segmentLimit is the size of the largest datagram that may share a message with
// another, as far as this kernel is concerned; 0 if it has no UDP_SEGMENT (Linux
// 4.18). An older one ignores the control message, and would send several
// datagrams as one.
func segmentLimit() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT); err != nil {
		return 0, nil
	}
	return maxSegmented / 2, nil
}
