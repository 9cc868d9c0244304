package proxy

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func listenTCP(t testing.TB, network, host string) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen(network, net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	return ln.(*net.TCPListener)
}

// startTCP serves a new frontend for p that leads to backend.
func startTCP(t testing.TB, p path, backend BackendFunc) *TCP {
	t.Helper()
	proxy := ServeTCP(listenTCP(t, p.network, p.listen), backend, TCPConfig{})
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	return proxy
}

func dialTCP(t testing.TB, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

func acceptTCP(t testing.TB, ln *net.TCPListener) *net.TCPConn {
	t.Helper()
	require.NoError(t, ln.SetDeadline(time.Now().Add(patience)))
	c, err := ln.AcceptTCP()
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return c
}

// joinTCP is a client and what the backend accepted for it.
func joinTCP(t testing.TB, p path) (proxy *TCP, client, backend *net.TCPConn) {
	t.Helper()
	ln := listenTCP(t, "tcp", p.backend)
	proxy = startTCP(t, p, to(addrPort(ln.Addr())))
	client = dialTCP(t, at(p.client, proxy.Addr()))
	return proxy, client, acceptTCP(t, ln)
}

func write(t testing.TB, w io.Writer, s string) {
	t.Helper()
	_, err := io.WriteString(w, s)
	require.NoError(t, err)
}

func requireRead(t testing.TB, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	_, err := io.ReadFull(r, b)
	require.NoError(t, err)
	require.Equal(t, want, string(b))
}

func requireEnd(t testing.TB, r io.Reader) {
	t.Helper()
	n, err := r.Read(make([]byte, 1))
	require.Zero(t, n)
	require.ErrorIs(t, err, io.EOF)
}

func requireReset(t testing.TB, r io.Reader) {
	t.Helper()
	_, err := r.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

// requireRefused says that a client is reset, be it within connect(2) already.
func requireRefused(t testing.TB, to netip.AddrPort) {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err == nil {
		defer func() { _ = c.Close() }()
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		_, err = c.Read(make([]byte, 1))
	}
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func reset(t testing.TB, c interface {
	SetLinger(sec int) error
	Close() error
}) {
	t.Helper()
	require.NoError(t, c.SetLinger(0))
	require.NoError(t, c.Close())
}

func liveTCP(p *TCP) int { p.mu.Lock(); defer p.mu.Unlock(); return len(p.conns) }

func TestTCPCarriesBothDirectionsAndTheLocalAddress(t *testing.T) {
	eachPath(t, "tcp", func(t *testing.T, p path) {
		ln := listenTCP(t, "tcp", p.backend)
		asked := make(chan netip.AddrPort, 1)
		proxy := startTCP(t, p, func(local netip.AddrPort) (netip.AddrPort, bool) {
			asked <- local
			return addrPort(ln.Addr()), true
		})
		client := dialTCP(t, at(p.client, proxy.Addr()))
		backend := acceptTCP(t, ln)
		require.Equal(t, at(p.client, proxy.Addr()), get(t, asked))
		write(t, client, "ask")
		requireRead(t, backend, "ask")
		write(t, backend, "answer")
		requireRead(t, client, "answer")
	})
}

func TestTCPHalfCloseByTheClient(t *testing.T) {
	eachPath(t, "tcp", func(t *testing.T, p path) {
		proxy, client, backend := joinTCP(t, p)
		write(t, client, "ask")
		require.NoError(t, client.CloseWrite())
		requireRead(t, backend, "ask")
		requireEnd(t, backend)
		write(t, backend, "answer")
		requireRead(t, client, "answer")
		require.NoError(t, backend.Close())
		requireEnd(t, client)
		eventually(t, func() bool { return liveTCP(proxy) == 0 }, "the connection does not end")
	})
}

func TestTCPHalfCloseByTheBackend(t *testing.T) {
	eachPath(t, "tcp", func(t *testing.T, p path) {
		proxy, client, backend := joinTCP(t, p)
		write(t, backend, "greeting")
		require.NoError(t, backend.CloseWrite())
		requireRead(t, client, "greeting")
		requireEnd(t, client)
		write(t, client, "late")
		requireRead(t, backend, "late")
		require.NoError(t, client.Close())
		requireEnd(t, backend)
		eventually(t, func() bool { return liveTCP(proxy) == 0 }, "the connection does not end")
	})
}

func TestTCPPassesOnAReset(t *testing.T) {
	eachPath(t, "tcp", func(t *testing.T, p path) {
		t.Run("of the client", func(t *testing.T) {
			_, client, backend := joinTCP(t, p)
			reset(t, client)
			requireReset(t, backend)
		})
		t.Run("of the backend", func(t *testing.T) {
			_, client, backend := joinTCP(t, p)
			reset(t, backend)
			requireReset(t, client)
		})
	})
}

// A side that is done writing can still break, and nothing may be on its way to
// find out.
func TestTCPNoticesAResetAfterHalfClose(t *testing.T) {
	noLeaks(t)
	t.Run("of the client", func(t *testing.T) {
		proxy, client, backend := joinTCP(t, localPath("tcp"))
		require.NoError(t, client.CloseWrite())
		requireEnd(t, backend)
		reset(t, client)
		eventually(t, func() bool { return liveTCP(proxy) == 0 }, "the connection does not end")
	})
	t.Run("of the backend", func(t *testing.T) {
		proxy, client, backend := joinTCP(t, localPath("tcp"))
		require.NoError(t, backend.CloseWrite())
		requireEnd(t, client)
		reset(t, backend)
		eventually(t, func() bool { return liveTCP(proxy) == 0 }, "the connection does not end")
	})
}

func TestTCPCarriesMuchBothWaysAtOnce(t *testing.T) {
	noLeaks(t)
	_, client, backend := joinTCP(t, localPath("tcp"))
	sent := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(sent)
	want := sha256.Sum256(sent)

	got := make(chan [32]byte, 2)
	for _, c := range []*net.TCPConn{client, backend} {
		go func() {
			_, err := io.Copy(c, bytes.NewReader(sent))
			assert.NoError(t, err)
			assert.NoError(t, c.CloseWrite())
		}()
		go func() {
			b, err := io.ReadAll(c)
			assert.NoError(t, err)
			got <- sha256.Sum256(b)
		}()
	}
	require.Equal(t, want, get(t, got))
	require.Equal(t, want, get(t, got))
}

func TestTCPResetsAClientThatCannotBeServed(t *testing.T) {
	t.Run("no backend", func(t *testing.T) {
		eachPath(t, "tcp", func(t *testing.T, p path) {
			proxy := startTCP(t, p, toNone)
			requireRefused(t, at(p.client, proxy.Addr()))
		})
	})
	t.Run("backend refuses", func(t *testing.T) {
		eachPath(t, "tcp", func(t *testing.T, p path) {
			ln := listenTCP(t, "tcp", p.backend)
			require.NoError(t, ln.Close())
			proxy := startTCP(t, p, to(addrPort(ln.Addr())))
			requireRefused(t, at(p.client, proxy.Addr()))
		})
	})
	t.Run("backend is deaf", func(t *testing.T) {
		noLeaks(t)
		proxy := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), to(deafTCP(t)), TCPConfig{DialTimeout: time.Millisecond})
		t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
		requireRefused(t, addrPort(proxy.Addr()))
	})
}

// deafTCP is the address of a listener whose queue is full, so that the kernel
// drops every SYN.
func deafTCP(t *testing.T) netip.AddrPort {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, unix.Listen(fd, 0))
	sa, err := unix.Getsockname(fd)
	require.NoError(t, err)
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(sa.(*unix.SockaddrInet4).Port))
	dialTCP(t, addr) // a backlog of 0 has room for one
	return addr
}

func TestTCPCloseEndsADial(t *testing.T) {
	noLeaks(t)
	deaf, asked := deafTCP(t), make(chan struct{}, 1)
	proxy := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), func(netip.AddrPort) (netip.AddrPort, bool) {
		asked <- struct{}{}
		return deaf, true
	}, TCPConfig{DialTimeout: time.Hour})
	client := dialTCP(t, addrPort(proxy.Addr()))
	get(t, asked)
	require.NoError(t, proxy.Close())
	requireReset(t, client)
}

func TestTCPCloseEndsLiveConnections(t *testing.T) {
	eachPath(t, "tcp", func(t *testing.T, p path) {
		proxy, client, backend := joinTCP(t, p)
		write(t, client, "ask")
		requireRead(t, backend, "ask")
		require.NoError(t, proxy.Close())
		requireReset(t, client)
		requireReset(t, backend)
		require.NoError(t, proxy.Close(), "again")

		addr := proxy.Addr().String()
		ln, err := net.Listen(p.network, addr)
		require.NoError(t, err, "the port is not free again")
		require.NoError(t, ln.Close())
	})
}

// The socket is the proxy's: nobody can close it behind its back, and have it
// accept from whatever gets the number next.
func TestTCPTakesTheSocket(t *testing.T) {
	noLeaks(t)
	ln, backend := listenTCP(t, "tcp", "127.0.0.1"), listenTCP(t, "tcp", "127.0.0.1")
	proxy := ServeTCP(ln, to(addrPort(backend.Addr())), TCPConfig{})
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	require.ErrorIs(t, ln.Close(), net.ErrClosed)
	client := dialTCP(t, addrPort(proxy.Addr()))
	write(t, client, "ask")
	requireRead(t, acceptTCP(t, backend), "ask")
}

func TestTCPCloseIsNilForAListenerThatWasClosed(t *testing.T) {
	noLeaks(t)
	ln := listenTCP(t, "tcp", "127.0.0.1")
	require.NoError(t, ln.Close())
	proxy := ServeTCP(ln, toNone, TCPConfig{})
	require.ErrorIs(t, proxy.Control(func(uintptr) { t.Error("a socket") }), net.ErrClosed)
	require.NoError(t, proxy.Close())
}

func TestTCPResetMovesClientsToTheNewBackend(t *testing.T) {
	noLeaks(t)
	before, after := listenTCP(t, "tcp", "127.0.0.1"), listenTCP(t, "tcp", "::1")
	var where atomic.Pointer[net.TCPListener]
	where.Store(before)
	proxy := startTCP(t, localPath("tcp"), func(netip.AddrPort) (netip.AddrPort, bool) {
		return addrPort(where.Load().Addr()), true
	})
	old := dialTCP(t, addrPort(proxy.Addr()))
	oldBackend := acceptTCP(t, before)
	write(t, old, "ask") // what arrives, arrives by a connection that stands
	requireRead(t, oldBackend, "ask")

	where.Store(after)
	proxy.Reset()
	requireReset(t, old)
	requireReset(t, oldBackend)

	client := dialTCP(t, addrPort(proxy.Addr()))
	backend := acceptTCP(t, after)
	write(t, client, "ask")
	requireRead(t, backend, "ask")
}

func TestTCPOutlivesErrorsOfAccept(t *testing.T) {
	noLeaks(t)
	ln := listenTCP(t, "tcp", "127.0.0.1")
	backend := listenTCP(t, "tcp", "127.0.0.1")
	proxy := newTCP(ln, to(addrPort(backend.Addr())), TCPConfig{})
	failures := []error{syscall.EMFILE, syscall.ECONNABORTED, syscall.ENOMEM}
	proxy.accept = func(fd int) (int, error) {
		if len(failures) > 0 {
			err := failures[0]
			failures = failures[1:]
			return -1, err
		}
		return accept4(fd)
	}
	proxy.start()
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	client := dialTCP(t, addrPort(proxy.Addr()))
	write(t, client, "ask")
	requireRead(t, acceptTCP(t, backend), "ask")
}

func TestTCPCloseEndsThePauseAfterAnError(t *testing.T) {
	noLeaks(t)
	var log lineCount
	proxy := newTCP(listenTCP(t, "tcp", "127.0.0.1"), toNone, TCPConfig{Log: log.logger()})
	proxy.accept = func(int) (int, error) { return -1, syscall.EMFILE }
	proxy.start()
	dialTCP(t, addrPort(proxy.Addr()))
	eventually(t, func() bool { return log.n.Load() == 1 }, "a line in the log")
	require.NoError(t, proxy.Close())
}
