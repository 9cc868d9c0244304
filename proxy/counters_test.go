package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// value is one number of a proxy, "name" or "name reason".
func value(t *testing.T, p Counted, name string) int {
	t.Helper()
	for _, s := range p.Samples() {
		if s.Name == "portolan_proxy_"+name || s.Name+" "+s.Reason == "portolan_proxy_"+name {
			return int(s.Value)
		}
	}
	require.Fail(t, "no such number", name)
	return 0
}

func requireValues(t *testing.T, p Counted, want map[string]int) {
	t.Helper()
	for name, n := range want {
		eventually(t, func() bool { return value(t, p, name) == n }, fmt.Sprintf("%s is not %d", name, n))
	}
}

func TestTCPCountsConnections(t *testing.T) {
	noLeaks(t)
	backend := listenTCP(t, "tcp", "127.0.0.1")
	var backendIs netip.AddrPort
	p := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), func(netip.AddrPort) (netip.AddrPort, bool) {
		return backendIs, backendIs.IsValid()
	}, TCPConfig{MaxConns: 2, DialTimeout: 10 * time.Millisecond})
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	front := addrPort(p.Addr())

	requireRefused(t, front)
	requireValues(t, p, map[string]int{"connections_refused_total no backend": 1})
	p.mu.Lock()
	backendIs = unusedTCP(t)
	p.mu.Unlock()
	requireRefused(t, front)
	requireValues(t, p, map[string]int{"connections_refused_total backend refused": 1})
	p.mu.Lock()
	backendIs = addrPort(backend.Addr())
	p.mu.Unlock()

	// Two may, and the third is reset; one that ends makes room.
	first, second := dialTCP(t, front), dialTCP(t, front)
	for range 2 {
		acceptTCP(t, backend)
	}
	requireValues(t, p, map[string]int{"connections": 2, "connections_total": 4})
	requireRefused(t, front)
	requireValues(t, p, map[string]int{"connections": 2, "connections_total": 4, "connections_refused_total limit": 1})
	abortTCP(first)
	requireValues(t, p, map[string]int{"connections": 1})
	third := dialTCP(t, front)
	b := acceptTCP(t, backend)
	write(t, third, "hello")
	requireRead(t, b, "hello")
	abortTCP(second)
	abortTCP(third)
	requireValues(t, p, map[string]int{"connections": 0, "connections_total": 5})
}

// unusedTCP is an address where nobody listens.
func unusedTCP(t *testing.T) netip.AddrPort {
	t.Helper()
	ln := listenTCP(t, "tcp", "127.0.0.1")
	defer func() { require.NoError(t, ln.Close()) }()
	return addrPort(ln.Addr())
}

// A client of a backend that does not answer is reset when the time to dial is
// over.
func TestTCPResetsWhenTheDialTakesTooLong(t *testing.T) {
	noLeaks(t)
	full := deafTCP(t)
	p := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), to(full), TCPConfig{DialTimeout: 50 * time.Millisecond})
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	c, err := net.Dial("tcp", p.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, unix.ECONNRESET)
	requireValues(t, p, map[string]int{"connections_refused_total dial timeout": 1, "connections": 0})
}

// A drained proxy refuses new connections, serves those that waited and those
// under way, and knows when the last has ended.
func TestTCPDrains(t *testing.T) {
	noLeaks(t)
	backend := listenTCP(t, "tcp", "127.0.0.1")
	p := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), to(addrPort(backend.Addr())), TCPConfig{})
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	front := addrPort(p.Addr())
	c := dialTCP(t, front)
	b := acceptTCP(t, backend)
	p.mu.Lock() // the loop waits, and so do the next clients
	var waiting []*net.TCPConn
	for range acceptsAtOnce + 3 {
		waiting = append(waiting, dialTCP(t, front))
	}
	p.mu.Unlock()
	p.Drain()
	p.Drain()
	require.Equal(t, 1+len(waiting), p.Connections())
	_, err := net.Dial("tcp", front.String())
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	for range waiting {
		acceptTCP(t, backend)
	}
	write(t, c, "still")
	requireRead(t, b, "still")
	require.NoError(t, c.CloseWrite())
	requireEnd(t, b)
	write(t, b, "here")
	require.NoError(t, b.CloseWrite())
	requireRead(t, c, "here")
	eventually(t, func() bool { return p.Connections() == len(waiting) }, "one has ended")
	require.NoError(t, p.Close())
	for _, w := range waiting {
		requireReset(t, w)
	}
	assert.Empty(t, p.Samples())
}

func TestUDPCountsFlows(t *testing.T) {
	noLeaks(t)
	backend := startEcho(t, "127.0.0.1")
	serve := true
	p := startUDP(t, localPath("udp"), func(netip.AddrPort) (netip.AddrPort, bool) {
		return backend.addr(), serve
	}, UDPConfig{MaxFlows: 3})
	clients := make([]*net.UDPConn, 5)
	for i := range clients {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addrPort(p.Addr())))
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, c.Close()) })
		clients[i] = c
		write(t, c, "hello")
		requireRead(t, c, "hello")
	}
	requireValues(t, p, map[string]int{"flows": 3, "flows_total": 5, "flows_evicted_total limit": 2, "datagrams_dropped_total": 0})
	p.Reset()
	p.mu.Lock()
	serve = false
	p.mu.Unlock()
	write(t, clients[0], "nobody")
	requireValues(t, p, map[string]int{"flows": 0, "flows_total": 5, "datagrams_dropped_total": 1})
}

// The kernel's own drops are counted as well: here, of a proxy that cannot read.
func TestUDPCountsWhatTheSocketDrops(t *testing.T) {
	noLeaks(t)
	p := startUDP(t, localPath("udp"), toNone, UDPConfig{})
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addrPort(p.Addr())))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, p.Control(func(fd uintptr) { _ = setInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) }))
	p.mu.Lock()
	for range 100 {
		_, err := c.Write(make([]byte, 1000))
		require.NoError(t, err)
	}
	p.mu.Unlock()
	require.NotZero(t, value(t, p, "socket_drops_total"))
}

// A proxy of several ports counts each apart.
func TestCountersOfSeveralPorts(t *testing.T) {
	noLeaks(t)
	backend := startEcho(t, "127.0.0.1")
	apart := map[netip.Addr]*Counters{}
	of := func(local netip.AddrPort) *Counters {
		if apart[local.Addr()] == nil {
			apart[local.Addr()] = new(Counters)
		}
		return apart[local.Addr()]
	}
	p := startUDP(t, path{"udp", "::", "", ""}, to(backend.addr()), UDPConfig{Counters: of})
	for host, clients := range map[string]int{"127.0.0.1": 2, "127.0.0.2": 3} {
		for range clients {
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at(host, p.Addr())))
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, c.Close()) })
			write(t, c, "hello")
			requireRead(t, c, "hello")
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for host, clients := range map[string]int{"127.0.0.1": 2, "127.0.0.2": 3} {
		assert.EqualValues(t, clients, apart[netip.MustParseAddr(host)].values[flowsTotal].Load())
	}
}
