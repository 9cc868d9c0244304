package sklookup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sockets opens what Steer leads to: a TCP listener and a UDP socket for each
// family that this host has. The caller closes them; opened again they take the
// place of those of before.
//
// An accepted connection's local address is the one that was dialled. Of a
// datagram IP_RECVORIGDSTADDR and IPV6_RECVORIGDSTADDR tell it, where the caller
// asks for them. Their own address is a free port of loopback: what arrives
// there is to be refused by whoever serves them, as it is for no port that is
// held.
func (t *Table) Sockets() (listeners []*net.TCPListener, conns []*net.UDPConn, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil, errClosed
	}
	t.sockets = nil
	defer func() {
		if err == nil {
			return
		}
		for _, ln := range listeners {
			err = errors.Join(err, ln.Close())
		}
		for _, c := range conns {
			err = errors.Join(err, c.Close())
		}
		listeners, conns = nil, nil
	}()
	for i, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // such a listener is no TCP socket to the map
		ln, err := lc.Listen(context.Background(), "tcp", host)
		if i > 0 && noIPv6(err) {
			break
		}
		if err != nil {
			return listeners, conns, err
		}
		listeners = append(listeners, ln.(*net.TCPListener))
		c, err := lc.ListenPacket(context.Background(), "udp", host)
		if err != nil {
			return listeners, conns, err
		}
		conns = append(conns, c.(*net.UDPConn))
		// As socket_index in sklookup.bpf.c.
		if err := errors.Join(t.enter(uint32(i), ln.(syscall.Conn)), t.enter(uint32(2+i), c.(syscall.Conn))); err != nil {
			return listeners, conns, err
		}
	}
	return listeners, conns, nil
}

func noIPv6(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)
}

// enter gives the programs a socket.
func (t *Table) enter(index uint32, s syscall.Conn) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var st unix.Stat_t
	var put error
	err = raw.Control(func(fd uintptr) {
		put = errors.Join(unix.Fstat(int(fd), &st), t.objs.Sockets.Put(index, uint64(fd)))
	})
	if err := errors.Join(err, put); err != nil {
		return fmt.Errorf("enter a socket for held ports: %w", err)
	}
	t.sockets = append(t.sockets, st.Ino)
	return nil
}
