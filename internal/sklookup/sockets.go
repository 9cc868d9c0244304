package sklookup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Sockets opens what Steer leads to: a TCP listener and a UDP socket for each
// family that this host has, of which those that an earlier process left are its own
// again, with what waits in them. The caller closes them; opened again they take the
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
	// Those of before may be open for a moment.
	t.inodes = t.inodes[max(0, len(t.inodes)-4):]
	inherited := t.inheritedSockets(t.netns)
	var opened []Descriptor
	defer func() {
		closeAll(inherited) // of those in use there are copies
		if err == nil {
			t.keepSockets(opened)
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
		ln, err := listenOr(inherited[i], host)
		if i > 0 && noIPv6(err) {
			break
		}
		if err != nil {
			return listeners, conns, err
		}
		listeners = append(listeners, ln)
		c, err := listenUDPOr(inherited[2+i], host)
		if err != nil {
			return listeners, conns, err
		}
		conns = append(conns, c)
		// As socket_index in sklookup.bpf.c.
		if err := errors.Join(t.enter(uint32(i), socketOf{ln}), t.enter(uint32(2+i), socketOf{c})); err != nil {
			return listeners, conns, err
		}
		opened = append(opened, socketOf{ln}, socketOf{c})
	}
	return listeners, conns, nil
}

// listenOr is a listener that an earlier process left, with who waits there, or a
// new one.
func listenOr(inherited *os.File, host string) (*net.TCPListener, error) {
	var ln net.Listener
	var err error
	if inherited != nil {
		ln, err = net.FileListener(inherited)
	} else {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // such a listener is no TCP socket to the map
		ln, err = lc.Listen(context.Background(), "tcp", host)
	}
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// listenUDPOr is the same for UDP.
func listenUDPOr(inherited *os.File, host string) (*net.UDPConn, error) {
	var c net.PacketConn
	var err error
	if inherited != nil {
		c, err = net.FilePacketConn(inherited)
	} else {
		c, err = net.ListenPacket("udp", host)
	}
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func noIPv6(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)
}

// enter gives the programs a socket.
func (t *Table) enter(index uint32, s Descriptor) error {
	var st unix.Stat_t
	var put error
	err := s.Control(func(fd uintptr) {
		put = errors.Join(unix.Fstat(int(fd), &st), t.objs.Sockets.Put(index, uint64(fd)))
	})
	if err := errors.Join(err, put); err != nil {
		return fmt.Errorf("enter a socket for held ports: %w", err)
	}
	t.inodes = append(t.inodes, st.Ino)
	return nil
}
