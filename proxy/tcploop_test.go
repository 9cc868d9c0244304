package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// hold calls f while the loop waits.
func (p *TCP) hold(f func()) { p.mu.Lock(); defer p.mu.Unlock(); f() }

// random is n bytes that compress badly and differ from place to place.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// A peer that reads slowly holds up the other, and nothing piles up here.
func TestTCPHoldsLittleOfWhatIsNotRead(t *testing.T) {
	for name, size := range map[string]int{"in small messages": 100, "in bulk": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			proxy, client, backend := joinTCP(t, localPath("tcp"))
			sent := sha256.New()
			stuff(t, proxy, client, random(size), sent)
			proxy.hold(func() {
				for c := range proxy.conns {
					held := len(c.client.rest)
					if c.client.pipe != nil {
						held += c.client.pipe.held
					}
					assert.LessOrEqual(t, held, pipeSize)
					assert.False(t, c.client.other.writable)
				}
			})
			require.NoError(t, client.CloseWrite())
			got := sha256.New()
			_, err := io.Copy(got, backend)
			require.NoError(t, err)
			require.Equal(t, sent.Sum(nil), got.Sum(nil))
			proxy.hold(func() {
				for c := range proxy.conns {
					assert.Nil(t, c.client.rest)
					assert.Nil(t, c.client.pipe)
				}
			})
		})
	}
}

// stuff has client send until nobody takes any more. sent gets what was taken.
func stuff(t *testing.T, p *TCP, client *net.TCPConn, chunk []byte, sent io.Writer) {
	t.Helper()
	eventually(t, func() bool {
		for {
			n, err := writeNow(client, chunk)
			if err != nil {
				assert.ErrorIs(t, err, unix.EAGAIN)
				return proxyIsFull(p)
			}
			_, _ = sent.Write(chunk[:n])
		}
	}, "the proxy takes everything")
}

// writeNow writes what can be written without waiting.
func writeNow(c *net.TCPConn, b []byte) (n int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) { n, err = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) })
	if cerr != nil {
		return 0, cerr
	}
	return n, err
}

// proxyIsFull says whether p has something that it cannot write.
func proxyIsFull(p *TCP) (full bool) {
	p.hold(func() {
		for c := range p.conns {
			full = full || c.client.held() && !c.backend.writable
		}
	})
	return full
}

// What is bulk goes through a pipe, and small messages after it do not.
func TestTCPTakesPipesForBulkAlone(t *testing.T) {
	noLeaks(t)
	var files Files
	ln := listenTCP(t, "tcp", "127.0.0.1")
	proxy := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), to(addrPort(ln.Addr())), TCPConfig{Files: &files})
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	client := dialTCP(t, addrPort(proxy.Addr()))
	backend := acceptTCP(t, ln)
	data := random(1 << 20)
	for range 2 {
		proxy.hold(func() { proxy.loop.pipes.close() })
		proxy.hold(func() { // so that it finds much at once
			n, err := writeNow(client, data)
			assert.NoError(t, err)
			data = data[:n]
		})
		got := make([]byte, len(data))
		_, err := io.ReadFull(backend, got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got))
		eventually(t, func() (used bool) {
			proxy.hold(func() { used = len(proxy.loop.pipes) > 0 })
			return used
		}, "no pipe was borrowed")
		for range 8 {
			write(t, client, "ask")
			requireRead(t, backend, "ask")
			write(t, backend, "answer")
			requireRead(t, client, "answer")
		}
		assert.EqualValues(t, filesOfConn, files.taken.Load())
	}
	reset(t, client)
	eventually(t, func() bool { return files.taken.Load() == 0 }, "files that nobody has")
}

// Without a file for a pipe bulk is copied.
func TestTCPCopiesBulkWithoutAFile(t *testing.T) {
	noLeaks(t)
	limitFiles(t, 400)
	var files Files
	files.taken.Store(400/2 - filesOfConn)
	ln := listenTCP(t, "tcp", "127.0.0.1")
	proxy := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), to(addrPort(ln.Addr())), TCPConfig{Files: &files})
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	client := dialTCP(t, addrPort(proxy.Addr()))
	backend := acceptTCP(t, ln)
	data := random(4 << 20)
	go func() {
		_, _ = client.Write(data)
		_ = client.CloseWrite()
	}()
	got, err := io.ReadAll(backend)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
	proxy.hold(func() {
		for c := range proxy.conns {
			assert.Nil(t, c.client.pipe)
		}
	})
}

// A read ends before urgent data although more has come. The urgent byte itself
// is not carried.
func TestTCPCarriesWhatFollowsUrgentData(t *testing.T) {
	noLeaks(t)
	proxy, client, backend := joinTCP(t, localPath("tcp"))
	urgent := func() {
		raw, err := client.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			assert.NoError(t, unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil))
		}))
	}
	// All of it is there before the proxy looks.
	proxy.hold(func() {
		write(t, client, "before")
		urgent()
		write(t, client, "after")
	})
	requireRead(t, backend, "beforeafter")

	data := random(4 << 20)
	go func() {
		_, _ = client.Write(data)
		urgent()
		_, _ = client.Write(data)
		_ = client.CloseWrite()
	}()
	got, err := io.ReadAll(backend)
	require.NoError(t, err)
	require.True(t, bytes.Equal(append(bytes.Clone(data), data...), got))
}

// Clients that speak first are heard, however long the dial takes, and one that
// goes meanwhile is not waited for.
func TestTCPWhileItDials(t *testing.T) {
	noLeaks(t)
	deaf := deafTCP(t)
	proxy := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), to(deaf), TCPConfig{DialTimeout: time.Hour})
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	client := dialTCP(t, addrPort(proxy.Addr()))
	write(t, client, "early")
	eventually(t, func() bool { return liveTCP(proxy) == 1 }, "the connection is not taken")
	reset(t, client)
	eventually(t, func() bool { return liveTCP(proxy) == 0 }, "the connection does not end")
}

func TestTCPResetWhereSparesTheOthers(t *testing.T) {
	noLeaks(t)
	ln := listenTCP(t, "tcp", "127.0.0.1")
	proxy := startTCP(t, path{network: "tcp", listen: "0.0.0.0"}, to(addrPort(ln.Addr())))
	var clients, backends [2]*net.TCPConn
	for i, host := range []string{"127.0.0.1", "127.0.0.2"} {
		clients[i] = dialTCP(t, at(host, proxy.Addr()))
		backends[i] = acceptTCP(t, ln)
		write(t, clients[i], "ask")
		requireRead(t, backends[i], "ask")
	}
	proxy.ResetWhere(func(local netip.AddrPort) bool { return local == at("127.0.0.2", proxy.Addr()) })
	requireReset(t, clients[1])
	requireReset(t, backends[1])
	write(t, clients[0], "ask")
	requireRead(t, backends[0], "ask")
	require.Equal(t, 1, liveTCP(proxy))
}

// Both sides' sockets send at once and are kept alive, whatever the listener is.
func TestTCPSocketOptions(t *testing.T) {
	for name, multipath := range map[string]bool{"tcp": false, "mptcp, where the kernel has it": true} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			var lc net.ListenConfig
			lc.SetMultipathTCP(multipath)
			front, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
			require.NoError(t, err)
			// One comes before the proxy.
			first := dialTCP(t, addrPort(front.Addr()))
			ln := listenTCP(t, "tcp", "127.0.0.1")
			proxy := ServeTCP(front.(*net.TCPListener), to(addrPort(ln.Addr())), TCPConfig{})
			t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
			for _, c := range []*net.TCPConn{first, dialTCP(t, addrPort(proxy.Addr()))} {
				write(t, c, "ask")
				requireRead(t, acceptTCP(t, ln), "ask")
			}
			proxy.hold(func() {
				require.Len(t, proxy.conns, 2)
				for c := range proxy.conns {
					for _, fd := range []int{c.client.fd, c.backend.fd} {
						for _, o := range []struct{ level, name, value int }{
							{unix.SOL_TCP, unix.TCP_NODELAY, 1},
							{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
							{unix.SOL_TCP, unix.TCP_KEEPIDLE, 15},
							{unix.SOL_TCP, unix.TCP_KEEPINTVL, 15},
							{unix.SOL_TCP, unix.TCP_KEEPCNT, 9},
						} {
							got, err := unix.GetsockoptInt(fd, o.level, o.name)
							require.NoError(t, err)
							assert.Equal(t, o.value, got, "%+v", o)
						}
					}
				}
			})
		})
	}
}

// A client whose connection is multipath gets all of a bulk transfer, too.
func TestTCPCarriesMultipathClients(t *testing.T) {
	noLeaks(t)
	ln := listenTCP(t, "tcp", "127.0.0.1")
	proxy := startTCP(t, localPath("tcp"), to(addrPort(ln.Addr())))
	var d net.Dialer
	d.SetMultipathTCP(true) // plain TCP where the kernel has it not
	client, err := d.Dial("tcp", proxy.Addr().String())
	require.NoError(t, err)
	defer func() { _ = client.Close() }()
	backend := acceptTCP(t, ln)
	data := random(4 << 20)
	for _, way := range [][2]net.Conn{{client, backend}, {backend, client}} {
		go func() { _, _ = way[0].Write(data) }()
		got := make([]byte, len(data))
		_, err := io.ReadFull(way[1], got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got))
	}
}

// Many at once, of all kinds, and nothing is lost or left.
func TestTCPCarriesManyAtOnce(t *testing.T) {
	noLeaks(t)
	var files Files
	ln := listenTCP(t, "tcp", "127.0.0.1")
	proxy := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), to(addrPort(ln.Addr())), TCPConfig{Files: &files})
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			all.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	var clients sync.WaitGroup
	for i := range 60 {
		clients.Go(func() {
			for range 20 {
				data := random(1 << (i % 20))
				c := dialTCP(t, addrPort(proxy.Addr()))
				if i%3 == 0 {
					_, _ = c.Write(data)
					_ = c.SetLinger(0)
					_ = c.Close()
					continue
				}
				go func() {
					_, _ = c.Write(data)
					_ = c.CloseWrite()
				}()
				got, err := io.ReadAll(c)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(data, got), "%d bytes for %d", len(got), len(data))
				_ = c.Close()
			}
		})
	}
	clients.Wait()
	eventually(t, func() bool { return liveTCP(proxy) == 0 }, "connections that do not end")
	assert.Zero(t, files.taken.Load())
	require.NoError(t, ln.Close())
	all.Wait()
}
