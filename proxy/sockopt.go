package proxy

import (
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// bufferSize is the limit of each socket's kernel buffers, in bytes. It is a
// limit and no allocation, so an idle socket costs nothing; the usual 208 KiB
// hold 270 small datagrams, and one burst of a busy client is more.
const bufferSize = 4 << 20

// enlargeBuffers does what it is allowed to: without CAP_NET_ADMIN the limit is
// net.core.rmem_max, and a proxy with small buffers is still a proxy.
func enlargeBuffers(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		for _, opt := range [...]struct{ force, plain int }{
			{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF},
			{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
		} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, opt.force, bufferSize) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, opt.plain, bufferSize)
			}
		}
	})
}

// enablePktinfo has every datagram bring its destination. A dual-stack socket
// needs both options: IPV6_PKTINFO of an IPv4 datagram does not tell whether the
// destination is a broadcast address, from which nothing can be answered.
func enablePktinfo(raw syscall.RawConn) error {
	var err error
	ctlErr := raw.Control(func(fd uintptr) {
		var domain int
		if domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
			err = fmt.Errorf("ask for SO_DOMAIN: %w", err)
			return
		}
		if domain == unix.AF_INET6 {
			if err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1); err != nil {
				err = fmt.Errorf("set IPV6_RECVPKTINFO: %w", err)
				return
			}
		}
		if err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1); err != nil {
			err = fmt.Errorf("set IP_PKTINFO: %w", err)
		}
	})
	if ctlErr != nil {
		return ctlErr
	}
	return err
}

// buffer has room for the largest datagram and for what the kernel says of it.
type buffer struct {
	data [65535]byte
	oob  [128]byte // IP_PKTINFO 32 bytes, IPV6_PKTINFO 40
}

// buffers are shared by all proxies: as many exist as are in use at a time.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

func takeBuffer() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) put() { buffers.Put(b) }
