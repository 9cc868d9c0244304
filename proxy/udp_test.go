package proxy

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func listenUDP(t testing.TB, network, host string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenPacket(network, net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.UDPConn)
}

// startUDP serves a new frontend for p that leads to backend.
func startUDP(t testing.TB, p path, backend BackendFunc, cfg UDPConfig) *UDP {
	t.Helper()
	proxy := ServeUDP(listenUDP(t, p.network, p.listen), backend, cfg)
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	return proxy
}

// clientUDP is an unconnected socket: it would take a reply from anywhere.
func clientUDP(t testing.TB, p path) *net.UDPConn {
	t.Helper()
	if netip.MustParseAddr(p.client).Is4() {
		return listenUDP(t, "udp4", "127.0.0.1")
	}
	return listenUDP(t, "udp6", "::1")
}

func sendUDP(t testing.TB, c *net.UDPConn, to netip.AddrPort, b []byte) {
	t.Helper()
	_, err := c.WriteToUDPAddrPort(b, to)
	require.NoError(t, err)
}

// receiveUDP is the next datagram and who sent it.
func receiveUDP(t testing.TB, c *net.UDPConn) ([]byte, netip.AddrPort) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
	b := make([]byte, 1<<16)
	n, from, err := c.ReadFromUDPAddrPort(b)
	require.NoError(t, err)
	return b[:n], plain(from)
}

// exchange sends b to a backend that echoes, and wants it back from where it
// was sent to.
func exchange(t testing.TB, c *net.UDPConn, to netip.AddrPort, b []byte) {
	t.Helper()
	sendUDP(t, c, to, b)
	got, from := receiveUDP(t, c)
	require.Equal(t, to, from, "the reply's source")
	require.True(t, bytes.Equal(b, got), "got %d bytes for %d", len(got), len(b))
}

// echo is a backend. Its flows are the source addresses that it has seen.
type echo struct {
	conn *net.UDPConn
	done sync.WaitGroup
	mu   sync.Mutex // guards below
	seen map[netip.AddrPort]int
}

func serveEcho(t testing.TB, conn *net.UDPConn, answer bool) *echo {
	e := &echo{conn: conn, seen: make(map[netip.AddrPort]int)}
	raw, err := conn.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) { enlargeBuffers(int(fd)) })) // what is lost is to be the proxy's fault
	e.done.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			e.mu.Lock()
			e.seen[from]++
			e.mu.Unlock()
			if answer {
				_, _ = conn.WriteToUDPAddrPort(b[:n], from)
			}
		}
	})
	t.Cleanup(e.stop)
	return e
}

func startEcho(t testing.TB, host string) *echo {
	return serveEcho(t, listenUDP(t, "udp", host), true)
}

func (e *echo) stop()                { _ = e.conn.Close(); e.done.Wait() }
func (e *echo) addr() netip.AddrPort { return addrPort(e.conn.LocalAddr()) }
func (e *echo) flows() int           { e.mu.Lock(); defer e.mu.Unlock(); return len(e.seen) }

// flowCount is how many flows p has.
func (p *UDP) flowCount() int { p.mu.Lock(); defer p.mu.Unlock(); return p.flows.len() }

func TestUDPKeepsDatagramsAndTheAddressThatTheClientUsed(t *testing.T) {
	eachPath(t, "udp", func(t *testing.T, p path) {
		backend, asked := startEcho(t, p.backend), make(chan netip.AddrPort, 1)
		proxy := startUDP(t, p, func(local netip.AddrPort) (netip.AddrPort, bool) {
			asked <- local
			return backend.addr(), true
		}, UDPConfig{})
		client, front := clientUDP(t, p), at(p.client, proxy.Addr())
		for _, size := range []int{1, 0, 512, 1500, 9000, 65507, 0, 1} {
			exchange(t, client, front, bytes.Repeat([]byte{byte(size), 7, 9}, 1+size/3)[:size])
		}
		require.Equal(t, front, get(t, asked))
		require.Empty(t, asked, "a flow is looked up once")
		require.Equal(t, 1, backend.flows())
	})
}

func TestUDPTellsLocalAddressesApart(t *testing.T) {
	for _, p := range []path{{"udp", "::", "127.0.0.1", "127.0.0.1"}, {"udp4", "0.0.0.0", "127.0.0.1", "::1"}} {
		t.Run(p.String(), func(t *testing.T) {
			noLeaks(t)
			backend := startEcho(t, p.backend)
			proxy := startUDP(t, p, to(backend.addr()), UDPConfig{})
			client := clientUDP(t, p)
			for range 2 {
				for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.9.9.9"} {
					exchange(t, client, at(host, proxy.Addr()), []byte(host))
				}
			}
			require.Equal(t, 3, backend.flows())
		})
	}
}

// The broadcast address of 127.0.0.0/8 is as good as a LAN's.
func TestUDPAnswersABroadcastFromAnAddressOfTheInterface(t *testing.T) {
	for _, p := range []path{{"udp", "::", "127.0.0.1", "127.0.0.1"}, {"udp4", "0.0.0.0", "127.0.0.1", "::1"}} {
		t.Run(p.String(), func(t *testing.T) {
			noLeaks(t)
			backend, asked := startEcho(t, p.backend), make(chan netip.AddrPort, 1)
			proxy := startUDP(t, p, func(local netip.AddrPort) (netip.AddrPort, bool) {
				asked <- local
				return backend.addr(), true
			}, UDPConfig{})
			client := clientUDP(t, p)
			sendUDP(t, client, at("127.255.255.255", proxy.Addr()), []byte("who is there"))
			require.Equal(t, at("127.255.255.255", proxy.Addr()), get(t, asked))
			got, from := receiveUDP(t, client)
			require.Equal(t, "who is there", string(got))
			require.Equal(t, at("127.0.0.1", proxy.Addr()), from)
		})
	}
}

func TestUDPCarriesManyFlows(t *testing.T) {
	noLeaks(t)
	const flows = 300
	p := path{"udp", "::", "127.0.0.1", "127.0.0.1"}
	backend := startEcho(t, p.backend)
	proxy := startUDP(t, p, to(backend.addr()), UDPConfig{})
	front := at(p.client, proxy.Addr())
	clients := make([]*net.UDPConn, flows)
	for i := range clients {
		clients[i] = clientUDP(t, p)
		sendUDP(t, clients[i], front, []byte(strconv.Itoa(i)))
	}
	for i, c := range clients {
		got, from := receiveUDP(t, c)
		require.Equal(t, strconv.Itoa(i), string(got))
		require.Equal(t, front, from)
	}
	require.Equal(t, flows, proxy.flowCount())
	require.Equal(t, flows, backend.flows())
}

func TestUDPEndsTheIdlestFlowForOneMore(t *testing.T) {
	noLeaks(t)
	p := localPath("udp")
	backend := startEcho(t, p.backend)
	proxy := startUDP(t, p, to(backend.addr()), UDPConfig{MaxFlows: 2})
	front := at(p.client, proxy.Addr())
	a, b, c := clientUDP(t, p), clientUDP(t, p), clientUDP(t, p)
	exchange(t, a, front, []byte("a"))
	exchange(t, b, front, []byte("b"))
	exchange(t, a, front, []byte("a"))
	exchange(t, c, front, []byte("c")) // ends b's flow
	require.Equal(t, 2, proxy.flowCount())
	exchange(t, a, front, []byte("a"))
	require.Equal(t, 3, backend.flows(), "a has lost its flow")
	exchange(t, b, front, []byte("b"))
	require.Equal(t, 4, backend.flows(), "b has kept its flow")
	require.Equal(t, 2, proxy.flowCount())
}

func TestUDPEndsAnIdleFlow(t *testing.T) {
	noLeaks(t)
	p := localPath("udp")
	backend := startEcho(t, p.backend)
	proxy := startUDP(t, p, to(backend.addr()), UDPConfig{Idle: 2 * time.Second})
	client, front := clientUDP(t, p), at(p.client, proxy.Addr())
	exchange(t, client, front, []byte("one"))
	eventually(t, func() bool { return proxy.flowCount() == 0 }, "the flow does not end")
	exchange(t, client, front, []byte("two"))
	require.Equal(t, 2, backend.flows())
}

func TestUDPKeepsAFlowThatSendsOneWay(t *testing.T) {
	const idle = 400 * time.Millisecond
	// stretch calls send again and again for three times idle, and begins anew
	// if this machine made a pause that would have been long enough to count.
	stretch := func(t *testing.T, begin, send func()) {
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			begin()
			start, last := time.Now(), time.Now()
			for time.Since(last) < idle/2 {
				if time.Since(start) > 3*idle {
					return
				}
				last = time.Now()
				send()
				time.Sleep(idle / 20)
			}
		}
		require.FailNow(t, "this machine is too busy")
	}
	setup := func(t *testing.T, answer bool) (backend *echo, proxy *UDP, client *net.UDPConn) {
		noLeaks(t)
		backend = serveEcho(t, listenUDP(t, "udp", "127.0.0.1"), answer)
		proxy = startUDP(t, localPath("udp"), to(backend.addr()), UDPConfig{Idle: idle})
		return backend, proxy, clientUDP(t, localPath("udp"))
	}
	t.Run("client", func(t *testing.T) {
		backend, proxy, client := setup(t, false)
		var before int
		send := func() { sendUDP(t, client, addrPort(proxy.Addr()), []byte("tick")) }
		stretch(t, func() {
			sent := total(backend)
			send()
			eventually(t, func() bool { return total(backend) > sent }, "nothing arrives")
			before = backend.flows()
		}, send)
		require.Equal(t, before, backend.flows())
	})
	t.Run("backend", func(t *testing.T) {
		backend, proxy, client := setup(t, true)
		var flow netip.AddrPort
		stretch(t, func() {
			backend.mu.Lock()
			clear(backend.seen)
			backend.mu.Unlock()
			exchange(t, client, addrPort(proxy.Addr()), []byte("subscribe"))
			backend.mu.Lock()
			defer backend.mu.Unlock()
			for flow = range backend.seen {
			}
		}, func() { _, _ = backend.conn.WriteToUDPAddrPort([]byte("tick"), flow) })
		require.Equal(t, 1, proxy.flowCount())
	})
}

// total is how many datagrams e has seen.
func total(e *echo) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.seen {
		n += m
	}
	return n
}

func TestUDPFlowOutlivesARefusingBackend(t *testing.T) {
	eachPath(t, "udp", func(t *testing.T, p path) {
		down := listenUDP(t, "udp", p.backend)
		addr := down.LocalAddr()
		require.NoError(t, down.Close())
		proxy := startUDP(t, p, to(addrPort(addr)), UDPConfig{})
		client, front := clientUDP(t, p), at(p.client, proxy.Addr())
		for range 5 {
			sendUDP(t, client, front, []byte("anybody"))
		}
		eventually(t, func() bool { return proxy.flowCount() == 1 }, "no flow")
		up, err := net.ListenUDP("udp", addr.(*net.UDPAddr))
		require.NoError(t, err)
		backend := serveEcho(t, up, true)
		sendUDP(t, client, front, []byte("there"))
		for {
			if got, _ := receiveUDP(t, client); string(got) == "there" {
				break
			}
		}
		require.Equal(t, 1, backend.flows())
		require.Equal(t, 1, proxy.flowCount())
	})
}

// The ICMP error of one datagram must not cost the next, be it read with the
// replies or met by the next datagram.
func TestUDPSendsDespiteAPendingError(t *testing.T) {
	noLeaks(t)
	down := listenUDP(t, "udp", "127.0.0.1")
	addr := down.LocalAddr().(*net.UDPAddr)
	require.NoError(t, down.Close())
	fd, err := connectUDP(addr.AddrPort())
	require.NoError(t, err)
	defer func() { assert.NoError(t, unix.Close(fd)) }()
	var out outbox
	f := &flow{key: flowKey{local: netip.MustParseAddrPort("224.0.0.1:9")}} // of a group, so that no client is told
	sendAll := func(sizes ...int) {
		for _, size := range sizes {
			out.add(bytes.Repeat([]byte{byte(size)}, size+1)[:size], f, nil, new(1000))
		}
		out.send(fd, func(*flow, *unix.Iovec) { t.Error("no room") })
	}
	sendAll(7)
	up, err := net.ListenUDP("udp", addr)
	require.NoError(t, err)
	defer func() { _ = up.Close() }()
	sendAll(5)
	got, _ := receiveUDP(t, up)
	require.Len(t, got, 5)

	require.NoError(t, up.Close())
	sendAll(7)
	up, err = net.ListenUDP("udp", addr)
	require.NoError(t, err)
	defer func() { _ = up.Close() }()
	want := []int{9, 9, 9, 0, 3, 8}
	sendAll(want...)
	for _, size := range want {
		got, _ := receiveUDP(t, up)
		require.Len(t, got, size)
	}
}

func TestUDPDropsWhatHasNoBackend(t *testing.T) {
	noLeaks(t)
	backend := startEcho(t, "127.0.0.1")
	p := path{"udp4", "0.0.0.0", "127.0.0.1", "127.0.0.1"}
	proxy := startUDP(t, p, func(local netip.AddrPort) (netip.AddrPort, bool) {
		return backend.addr(), local.Addr() == netip.MustParseAddr("127.0.0.1")
	}, UDPConfig{})
	client := clientUDP(t, p)
	sendUDP(t, client, at("127.0.0.2", proxy.Addr()), []byte("refused"))
	exchange(t, client, at("127.0.0.1", proxy.Addr()), []byte("served"))
	require.Equal(t, 1, proxy.flowCount())
}

func TestUDPResetMovesClientsToTheNewBackend(t *testing.T) {
	noLeaks(t)
	p := localPath("udp")
	before, after := startEcho(t, "127.0.0.1"), startEcho(t, "::1")
	var where atomic.Pointer[echo]
	where.Store(before)
	proxy := startUDP(t, p, func(netip.AddrPort) (netip.AddrPort, bool) { return where.Load().addr(), true }, UDPConfig{})
	client, front := clientUDP(t, p), at(p.client, proxy.Addr())
	exchange(t, client, front, []byte("one"))
	where.Store(after)
	exchange(t, client, front, []byte("two"))
	require.Zero(t, after.flows(), "a flow is looked up once")
	proxy.Reset()
	exchange(t, client, front, []byte("three"))
	require.Equal(t, 1, after.flows())
}

func TestUDPCloseEndsFlowsAndFreesThePort(t *testing.T) {
	eachPath(t, "udp", func(t *testing.T, p path) {
		backend := startEcho(t, p.backend)
		proxy := startUDP(t, p, to(backend.addr()), UDPConfig{})
		exchange(t, clientUDP(t, p), at(p.client, proxy.Addr()), []byte("ask"))
		require.NoError(t, proxy.Close())
		require.NoError(t, proxy.Close(), "again")
		require.Zero(t, proxy.flowCount())

		addr := proxy.Addr().String()
		c, err := net.ListenPacket(p.network, addr)
		require.NoError(t, err, "the port is not free again")
		require.NoError(t, c.Close())
	})
}

// Clients come, and the port moves, while the proxy is closed.
func TestUDPCloseAndResetUnderLoad(t *testing.T) {
	noLeaks(t)
	p := localPath("udp")
	backend := startEcho(t, p.backend)
	for range 10 {
		proxy := startUDP(t, p, to(backend.addr()), UDPConfig{MaxFlows: 8})
		front := at(p.client, proxy.Addr())
		stop := make(chan struct{})
		var senders sync.WaitGroup
		for range 4 {
			senders.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err == nil {
						_, _ = c.WriteToUDPAddrPort([]byte("load"), front)
						_ = c.Close()
					}
				}
			})
		}
		eventually(t, func() bool { return proxy.flowCount() == 8 }, "no load")
		for range 20 {
			proxy.Reset()
		}
		var closers sync.WaitGroup
		for range 2 {
			closers.Go(func() { assert.NoError(t, proxy.Close()) })
		}
		closers.Wait()
		close(stop)
		senders.Wait()
		require.Zero(t, proxy.flowCount())
	}
}

func TestUDPOutlivesErrorsOfRead(t *testing.T) {
	noLeaks(t)
	backend := startEcho(t, "127.0.0.1")
	var lines lineCount
	proxy := newUDP(listenUDP(t, "udp", "127.0.0.1"), to(backend.addr()), UDPConfig{Log: lines.logger()})
	failures := 3
	proxy.receive = func(b *batch, fd int) (int, error) {
		if failures > 0 {
			failures--
			return 0, syscall.ENOMEM
		}
		return b.receiveRequests(fd)
	}
	proxy.start()
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	exchange(t, clientUDP(t, localPath("udp")), addrPort(proxy.Addr()), []byte("ask"))
	require.EqualValues(t, 1, lines.n.Load(), "lines in the log")
}

// A port that is published while there is no file left is served once there is.
func TestUDPServesOnceThereAreFiles(t *testing.T) {
	noLeaks(t)
	backend := startEcho(t, "127.0.0.1")
	client, conn := clientUDP(t, localPath("udp")), listenUDP(t, "udp", "127.0.0.1")
	limitFiles(t, 200)
	var taken []int
	for {
		fd, err := unix.Dup(0)
		if err != nil {
			require.ErrorIs(t, err, unix.EMFILE)
			break
		}
		taken = append(taken, fd)
	}
	var lines lineCount
	proxy := ServeUDP(conn, to(backend.addr()), UDPConfig{Log: lines.logger()})
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	sendUDP(t, client, addrPort(proxy.Addr()), []byte("early"))
	require.Eventually(t, func() bool { return lines.n.Load() > 0 }, patience, time.Millisecond, "nobody is told")
	for _, fd := range taken {
		require.NoError(t, unix.Close(fd))
	}
	got, _ := receiveUDP(t, client)
	require.Equal(t, "early", string(got))
	require.EqualValues(t, 1, lines.n.Load(), "lines in the log")
	proxy.Reset()
	exchange(t, client, addrPort(proxy.Addr()), []byte("ask"))
	require.NoError(t, proxy.Close())
	require.ErrorIs(t, proxy.Control(func(uintptr) {}), net.ErrClosed)
	c, err := net.ListenPacket("udp", proxy.Addr().String())
	require.NoError(t, err, "the port is not free again")
	require.NoError(t, c.Close())
}

// lineCount is a log of which only the length matters.
type lineCount struct{ n atomic.Int32 }

func (l *lineCount) Write(b []byte) (int, error) { l.n.Add(1); return len(b), nil }
func (l *lineCount) logger() *slog.Logger        { return slog.New(slog.NewTextHandler(l, nil)) }

// requireSparse says that there are lines, and no more than one a second.
func (l *lineCount) requireSparse(t *testing.T, start time.Time) {
	t.Helper()
	n := l.n.Load()
	require.Positive(t, n, "lines in the log")
	require.LessOrEqual(t, n, 1+int32(time.Since(start)/time.Second), "lines in the log")
}

func TestUDPLogsSparselyThatFlowsFail(t *testing.T) {
	noLeaks(t)
	backend := startEcho(t, "127.0.0.1")
	p := path{"udp4", "0.0.0.0", "127.0.0.1", ""}
	var lines lineCount
	proxy := startUDP(t, p, func(local netip.AddrPort) (netip.AddrPort, bool) {
		if local.Addr() == netip.MustParseAddr("127.0.0.2") { // EINVAL: no zone
			return netip.MustParseAddrPort("[fe80::1]:53"), true
		}
		return backend.addr(), true
	}, UDPConfig{Log: lines.logger()})
	bad, good := at("127.0.0.2", proxy.Addr()), at("127.0.0.1", proxy.Addr())
	start := time.Now()
	for range 2 {
		client := clientUDP(t, p)
		for range 5 {
			sendUDP(t, client, bad, []byte("lost"))
		}
		exchange(t, client, good, []byte("served"))
	}
	lines.requireSparse(t, start)
	require.Equal(t, 2, proxy.flowCount())
}

func TestUDPIdleSocketsCostLittle(t *testing.T) {
	noLeaks(t)
	const sockets = 1000
	before := inUse()
	for range sockets {
		startUDP(t, path{"udp", "::", "", ""}, toNone, UDPConfig{})
	}
	// Not at once: each looks for a datagram first, with a buffer, and the pool
	// keeps buffers for a while.
	eventually(t, func() bool { return (inUse()-before)/sockets < 8<<10 }, "an idle socket costs 8 KiB or more")
}
