package driver

import (
	"net"

	"golang.org/x/sys/unix"
)

// dialTCP connects from the thread's own namespace, which net.Dial would leave:
// it may use another goroutine.
func dialTCP(to *net.TCPAddr) (closer func() error, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return func() error { return unix.Close(fd) }, nil
}
