package hooks

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// BenchmarkPaths is one client on the host and a container: straight to the
// container's address, and by [::1] and the hooks. Run both in turns and compare
// (benchstat): one follows the other otherwise. Connected UDP goes by netfilter,
// and is measured in package portmap.
func BenchmarkPaths(b *testing.B) {
	r := newRig(b)
	serve(b, r.container, netip.AddrPortFrom(wildcard, containerPort), "container")
	sink(b, r, containerPort+1)
	r.attach(b)
	ways := []struct {
		name    string
		backend netip.Addr
		direct  bool
	}{{"direct", container6, true}, {"hooks", container6, false}, {"direct4", container4, true}, {"hooks4", container4, false}}
	for _, w := range ways {
		for _, proto := range []uint8{tcp, udp} {
			_ = r.Delete(proto, wildcard, hostPort, hostPort+1)
			require.NoError(b, r.Set(proto, wildcard, hostPort, hostPort+1, netip.AddrPortFrom(w.backend, containerPort), netip.Addr{}))
		}
		to := netip.AddrPortFrom(loopback6, hostPort)
		if w.direct {
			to = netip.AddrPortFrom(mapped(w.backend), containerPort)
		}
		for _, k := range []struct {
			name  string
			bench func(b *testing.B, to netip.AddrPort)
		}{
			{"tcp-rr", roundTrips(client{proto: tcp})},
			{"udp-rr-unconnected", roundTrips(client{proto: udp, unconnected: true})},
			{"tcp-crr", connects},
			{"tcp-bulk", bulk},
		} {
			if w.backend.Is4() && k.name == "udp-rr-unconnected" {
				continue // left alone
			}
			b.Run(w.name+"/"+k.name, func(b *testing.B) { k.bench(b, to) })
		}
	}
}

func roundTrips(c client) func(b *testing.B, to netip.AddrPort) {
	return func(b *testing.B, to netip.AddrPort) {
		a, err := c.ask(b, here{}, to)
		require.NoError(b, err)
		require.Equal(b, "container", a.word)
		peer, buf, question := sockaddr(to), make([]byte, 99), []byte("?")
		b.ReportAllocs()
		for b.Loop() {
			if c.unconnected {
				err = unix.Sendto(a.fd, question, 0, peer)
			} else {
				_, err = unix.Write(a.fd, question)
			}
			if err == nil {
				err = receive(a.fd, buf)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}

// receive is with the sender's address, which a hook has to restore.
func receive(fd int, buf []byte) error {
	for {
		if _, _, err := unix.Recvfrom(fd, buf, 0); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// connects closes with a reset, so that no port is left in TIME_WAIT.
func connects(b *testing.B, to netip.AddrPort) {
	peer, buf, question := sockaddr(to), make([]byte, 99), []byte("?")
	for b.Loop() {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), unix.Connect(fd, peer))
		}
		if err == nil {
			_, err = unix.Write(fd, question)
		}
		if err == nil {
			err = receive(fd, buf)
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			b.Fatal(err)
		}
	}
}

// sink reads what TCP clients send, and says so when they end.
func sink(b *testing.B, r *rig, port uint16) {
	require.NoError(b, r.container.Do(func() error {
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(port)})
		if err != nil {
			return err
		}
		b.Cleanup(func() { _ = ln.Close() })
		go func() {
			for {
				c, err := ln.AcceptTCP()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
				}()
			}
		}()
		return nil
	}))
}

// bulk sends to the port after the one given.
func bulk(b *testing.B, to netip.AddrPort) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(b, err)
	defer unix.Close(fd)
	require.NoError(b, unix.Connect(fd, sockaddr(netip.AddrPortFrom(to.Addr(), to.Port()+1))))
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		for rest := buf; len(rest) > 0; {
			n, err := unix.Write(fd, rest)
			if err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
	}
	require.NoError(b, unix.Shutdown(fd, unix.SHUT_WR))
	_, err = unix.Read(fd, buf)
	require.NoError(b, err)
}

// BenchmarkUnpublished is what a socket pays that dials something else.
func BenchmarkUnpublished(b *testing.B) {
	r := newRig(b)
	serve(b, r.container, netip.AddrPortFrom(wildcard, containerPort), "container")
	to := netip.AddrPortFrom(container6, containerPort)
	both := func(name string) {
		b.Run(name+"/udp-rr-unconnected", func(b *testing.B) { roundTrips(client{proto: udp, unconnected: true})(b, to) })
		b.Run(name+"/tcp-crr", func(b *testing.B) { connects(b, to) })
	}
	both("without")
	r.attach(b)
	r.publish(b, wildcard, container6)
	both("attached")
}

// BenchmarkSet sets and deletes a range, and as many single ports.
func BenchmarkSet(b *testing.B) {
	r := newRig(b)
	r.attach(b)
	to := netip.AddrPortFrom(container6, 10000)
	b.Run("a range of 10000", func(b *testing.B) {
		for b.Loop() {
			require.NoError(b, r.Set(udp, wildcard, 10000, 19999, to, netip.Addr{}))
			require.NoError(b, r.Delete(udp, wildcard, 10000, 19999))
		}
	})
	b.Run("10000 single ports", func(b *testing.B) {
		for b.Loop() {
			for p := uint16(10000); p < 20000; p++ {
				require.NoError(b, r.Set(udp, wildcard, p, p, to, netip.Addr{}))
			}
			for p := uint16(10000); p < 20000; p++ {
				require.NoError(b, r.Delete(udp, wildcard, p, p))
			}
		}
	})
}
