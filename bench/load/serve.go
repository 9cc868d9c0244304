package load

import (
	"fmt"
	"net"
	"runtime"

	"golang.org/x/sys/unix"
)

// Serve serves on all addresses of both families until something fails.
func Serve() error {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	udp, err := listen(poll, unix.SOCK_DGRAM, UDPPort)
	if err != nil {
		return err
	}
	tcp, err := listen(poll, unix.SOCK_STREAM, TCPPort)
	if err != nil {
		return err
	}
	// The last: whoever can connect to it finds the others open.
	ln, err := net.Listen("tcp", fmt.Sprintf(":%d", SinkPort))
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- sink(ln) }()
	go func() { failed <- echo(poll, udp, tcp) }()
	return <-failed
}

// echo is an event loop.
func echo(poll, udp, tcp int) error {
	runtime.LockOSThread()
	events := make([]unix.EpollEvent, 256)
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.EpollWait(poll, events, -1)
		if err != nil && err != unix.EINTR { //nolint:errorlint // an errno
			return fmt.Errorf("wait for requests: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			switch fd := int(e.Fd); fd {
			case udp:
				echoDatagrams(fd, buf)
			case tcp:
				accept(poll, fd)
			default:
				echoStream(fd, buf)
			}
		}
	}
}

func listen(poll, kind, port int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	if err := unix.Bind(fd, &unix.SockaddrInet6{Port: port}); err != nil {
		return -1, fmt.Errorf("bind port %d: %w", port, err)
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.Listen(fd, 4096); err != nil {
			return -1, fmt.Errorf("listen on port %d: %w", port, err)
		}
	}
	return fd, watch(poll, fd)
}

func watch(poll, fd int) error {
	return unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// echoDatagrams sends back what there is. On a bridge the answer leaves from the
// address that was asked, since there is one of each family.
func echoDatagrams(fd int, buf []byte) {
	for range 256 {
		n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN { //nolint:errorlint // an errno
			return
		}
		if err == nil {
			_ = unix.Sendto(fd, buf[:n], 0, from)
		}
	}
}

func accept(poll, ln int) {
	for {
		fd, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			return
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		if watch(poll, fd) != nil {
			_ = unix.Close(fd)
		}
	}
}

// echoStream sends back what there is, which is short enough to be taken whole.
func echoStream(fd int, buf []byte) {
	n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
	if err == unix.EAGAIN { //nolint:errorlint // an errno
		return
	}
	if err != nil || n == 0 {
		_ = unix.Close(fd)
		return
	}
	_ = unix.Send(fd, buf[:n], unix.MSG_NOSIGNAL)
}
