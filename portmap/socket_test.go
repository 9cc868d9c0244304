package portmap

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func dialFrom(t testing.TB, from, to string) (net.Conn, error) {
	t.Helper()
	local, err := net.ResolveTCPAddr("tcp", from)
	require.NoError(t, err)
	return (&net.Dialer{LocalAddr: local}).Dial("tcp", to)
}

// TestSocketDropsTCP connects before anybody serves.
func TestSocketDropsTCP(t *testing.T) {
	a := newAllocator(t, TCP)
	s := take(t, a, one(TCP, "127.0.0.1", 8080, 80), "s1")[0]
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:8080")
	requireTimeout(t, err, "neither accepted nor refused")

	require.NoError(t, s.Open())
	require.NoError(t, s.Open(), "open twice")
	c, err := net.Dial("tcp", "127.0.0.1:8080")
	require.NoError(t, err)
	defer c.Close()
	got, err := s.TCP.Accept()
	require.NoError(t, err)
	defer got.Close()
	require.Equal(t, c.LocalAddr().String(), got.RemoteAddr().String(), "nobody was queued before")

	require.NoError(t, s.Shut())
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:8080")
	requireTimeout(t, err, "shut again")
}

func requireTimeout(t testing.TB, err error, msg string) {
	t.Helper()
	var e net.Error
	require.ErrorAs(t, err, &e, msg)
	require.True(t, e.Timeout(), "%s: %v", msg, err)
}

// TestSocketDropsUDP sends before anybody serves.
func TestSocketDropsUDP(t *testing.T) {
	a := newAllocator(t, UDP)
	for _, to := range []string{"127.0.0.1:5353", "[::1]:5353"} {
		s := take(t, a, one(UDP, netip.MustParseAddrPort(to).Addr().String(), 5353, 53), "s1")[0]
		c, err := net.Dial("udp", to)
		require.NoError(t, err)
		defer c.Close()
		send := func(what string) {
			_, err := c.Write([]byte(what))
			require.NoError(t, err)
		}
		receive := func() string {
			buf := make([]byte, 99)
			require.NoError(t, s.UDP.SetReadDeadline(time.Now().Add(5*time.Second)))
			n, err := s.UDP.Read(buf)
			require.NoError(t, err)
			return string(buf[:n])
		}
		send("too early")
		require.NoError(t, s.Open())
		send("served")
		require.Equal(t, "served", receive())
		require.NoError(t, s.Shut())
		send("unpublished")
		require.NoError(t, s.Open())
		send("served again")
		require.Equal(t, "served again", receive())
	}
}

// TestSocketTimeWait takes a TCP port back that has a connection in TIME_WAIT.
func TestSocketTimeWait(t *testing.T) {
	a := newAllocator(t, TCP)
	m := one(TCP, "", 8080, 80)
	leases, err := a.Exact(m, "s1")
	require.NoError(t, err)
	require.NoError(t, leases[0].Open())
	c, err := net.Dial("tcp", "127.0.0.1:8080")
	require.NoError(t, err)
	defer c.Close()
	got, err := leases[0].TCP.Accept()
	require.NoError(t, err)
	require.NoError(t, got.Close()) // who closes first has the TIME_WAIT
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, a.Release(leases, "s1"))
	require.Eventually(t, func() bool {
		socks, err := netlink.SocketDiagTCP(unix.AF_INET6)
		require.NoError(t, err)
		for _, s := range socks {
			if s.ID.SourcePort == 8080 && s.State == netlink.TCP_TIME_WAIT {
				return true
			}
		}
		return false
	}, 5*time.Second, 10*time.Millisecond)
	take(t, a, m, "s2")
}

// TestSocketTaken has other programs try what is reserved, with the options that
// let programs share a port.
func TestSocketTaken(t *testing.T) {
	for _, p := range []Proto{TCP, UDP} {
		take(t, newAllocator(t, p), one(p, "", 8080, 80), "s1")
		for _, to := range []unix.Sockaddr{
			&unix.SockaddrInet4{Port: 8080}, &unix.SockaddrInet4{Port: 8080, Addr: [4]byte{127, 0, 0, 1}},
			&unix.SockaddrInet6{Port: 8080}, &unix.SockaddrInet6{Port: 8080, Addr: netip.IPv6Loopback().As16()},
		} {
			require.ErrorIs(t, bindShared(p, to), unix.EADDRINUSE, "%s %+v", p, to)
		}
	}
}

func bindShared(p Proto, to unix.Sockaddr) error {
	family, typ := unix.AF_INET, unix.SOCK_STREAM
	if _, ok := to.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	if p == UDP {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	if err == nil {
		err = unix.Bind(fd, to)
	}
	if err == nil && p == TCP {
		err = unix.Listen(fd, 1)
	}
	return err
}

// TestSocketSCTP reserves SCTP ports, with a socket where the kernel has them.
func TestSocketSCTP(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	sockets := err == nil
	if sockets {
		require.NoError(t, unix.Close(fd))
	}
	var log bytes.Buffer
	before := OpenSockets(t)
	a := NewAllocator(SCTP, NewSockets(slog.New(slog.NewTextHandler(&log, nil))), "/proc/sys/net")
	var all []lease
	for _, host := range []string{"", "127.0.0.1", "::1"} {
		leases, err := a.Exact(ports(SCTP, host, 5000+uint16(len(all)), 5001+uint16(len(all)), 80), "s1")
		require.NoError(t, err)
		all = append(all, leases...)
	}
	for _, l := range all {
		require.Nil(t, l.TCP)
		require.Nil(t, l.UDP)
		require.NoError(t, l.Open())
		require.NoError(t, l.Shut())
	}
	_, err = a.Exact(one(SCTP, "", 5003, 80), "s2")
	require.ErrorIs(t, err, ErrPortInUse)
	if sockets {
		RequireSockets(t, before+6)
		require.Empty(t, log.String())
	} else {
		RequireSockets(t, before)
		require.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
		require.Contains(t, log.String(), "no SCTP sockets")
	}
	require.NoError(t, a.Release(all, "s1"))
	RequireSockets(t, before)
	require.Empty(t, a.held)
}

// TestSocketFiles runs out of open files in the middle of a range.
func TestSocketFiles(t *testing.T) {
	a := newAllocator(t, UDP)
	var old unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	fd, err := unix.Dup(0)
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	few := unix.Rlimit{Cur: uint64(fd + 100), Max: old.Max}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	t.Cleanup(func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) })
	_, err = a.Exact(ports(UDP, "", 10000, 10099, 80), "s1")
	require.ErrorIs(t, err, unix.EMFILE)
	take(t, a, ports(UDP, "", 10100, 10109, 80), "s1")
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	require.ErrorContains(t, err, "LimitNOFILE")
	require.NotErrorIs(t, err, ErrPortInUse)
	take(t, a, ports(UDP, "", 10000, 10099, 80), "s1")
}
