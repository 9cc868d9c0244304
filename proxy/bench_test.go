package proxy

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// benchPaths are the ways that the kernel's NAT has not: by ::1, to a container
// of either family; and one that it has, to compare.
var benchPaths = []path{
	{"", "::", "::1", "127.0.0.1"},
	{"", "::", "::1", "::1"},
	{"", "::", "127.0.0.1", "127.0.0.1"},
}

func eachBenchPath(b *testing.B, proto string, f func(*testing.B, path)) {
	for _, p := range benchPaths {
		p.network = proto
		b.Run("by "+p.client+" to "+p.backend, func(b *testing.B) { f(b, p) })
	}
}

// BenchmarkUDPRoundTrip is one datagram of 64 bytes there and back.
func BenchmarkUDPRoundTrip(b *testing.B) {
	eachBenchPath(b, "udp", func(b *testing.B, p path) {
		backend := startEcho(b, p.backend)
		proxy := startUDP(b, p, to(backend.addr()), UDPConfig{})
		client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at(p.client, proxy.Addr())))
		require.NoError(b, err)
		b.Cleanup(func() { _ = client.Close() })
		msg := make([]byte, 64)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := client.Write(msg); err != nil {
				b.Fatal(err)
			}
			if _, err := client.Read(msg); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkUDPNewFlow is a round trip of a client that was never seen before,
// in a table that is full.
func BenchmarkUDPNewFlow(b *testing.B) {
	p := localPath("udp")
	backend := startEcho(b, p.backend)
	proxy := startUDP(b, p, to(backend.addr()), UDPConfig{MaxFlows: 128})
	front := net.UDPAddrFromAddrPort(addrPort(proxy.Addr()))
	msg := make([]byte, 64)
	for b.Loop() {
		client, err := net.DialUDP("udp", nil, front)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := client.Write(msg); err != nil {
			b.Fatal(err)
		}
		if _, err := client.Read(msg); err != nil {
			b.Fatal(err)
		}
		_ = client.Close()
	}
}

// joinBench is joinTCP without deadlines.
func joinBench(b *testing.B, p path) (client, backend *net.TCPConn) {
	_, client, backend = joinTCP(b, p)
	require.NoError(b, client.SetDeadline(time.Time{}))
	require.NoError(b, backend.SetDeadline(time.Time{}))
	return client, backend
}

// BenchmarkTCPRoundTrip is 64 bytes there and back on a live connection.
func BenchmarkTCPRoundTrip(b *testing.B) {
	eachBenchPath(b, "tcp", func(b *testing.B, p path) {
		client, backend := joinBench(b, p)
		go echoTCP(backend)
		msg := make([]byte, 64)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := client.Write(msg); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(client, msg); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// echoTCP ends when the benchmark closes c.
func echoTCP(c *net.TCPConn) {
	buf := make([]byte, 64)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

// BenchmarkTCPBulk is 64 KiB from client to backend.
func BenchmarkTCPBulk(b *testing.B) {
	eachBenchPath(b, "tcp", func(b *testing.B, p path) {
		client, backend := joinBench(b, p)
		done := make(chan int64)
		go drainTCP(backend, done)
		chunk := make([]byte, 64<<10)
		b.SetBytes(int64(len(chunk)))
		for b.Loop() {
			if _, err := client.Write(chunk); err != nil {
				b.Fatal(err)
			}
		}
		require.NoError(b, client.CloseWrite())
		require.Equal(b, int64(b.N)*int64(len(chunk)), <-done)
	})
}

func drainTCP(c *net.TCPConn, done chan<- int64) {
	buf, total := make([]byte, 256<<10), int64(0)
	for {
		n, err := c.Read(buf)
		total += int64(n)
		if err != nil {
			done <- total
			return
		}
	}
}

// BenchmarkTCPConnect is a connection, 64 bytes there and back, and its end by
// the client's reset.
func BenchmarkTCPConnect(b *testing.B) {
	p := localPath("tcp")
	ln := listenTCP(b, "tcp", p.backend)
	go acceptEcho(ln)
	proxy := startTCP(b, p, to(addrPort(ln.Addr())))
	front := net.TCPAddrFromAddrPort(addrPort(proxy.Addr()))
	msg := make([]byte, 64)
	for b.Loop() {
		c, err := net.DialTCP("tcp", nil, front)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Write(msg); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, msg); err != nil {
			b.Fatal(err)
		}
		abortTCP(c)
	}
}

// acceptEcho ends when the benchmark closes ln.
func acceptEcho(ln *net.TCPListener) {
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			echoTCP(c)
		}()
	}
}

// BenchmarkIdleSockets is the memory of sockets that nothing arrives at, and
// the time to begin serving one and to end it.
func BenchmarkIdleSockets(b *testing.B) {
	b.Run("udp", func(b *testing.B) {
		benchIdle(b, func() Proxy { return ServeUDP(listenUDP(b, "udp", "::"), toNone, UDPConfig{}) })
	})
	b.Run("tcp", func(b *testing.B) {
		benchIdle(b, func() Proxy { return ServeTCP(listenTCP(b, "tcp", "::"), toNone, TCPConfig{}) })
	})
}

func benchIdle(b *testing.B, serve func() Proxy) {
	const sockets = 1000
	for b.Loop() {
		before := memory()
		var all [sockets]Proxy
		for i := range all {
			all[i] = serve()
		}
		after := memory()
		b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/sockets, "heap-B/socket")
		b.ReportMetric(float64(int64(after.StackInuse)-int64(before.StackInuse))/sockets, "stack-B/socket")
		for _, p := range all {
			if err := p.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func memory() (m runtime.MemStats) {
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m
}

// inUse is the memory that this process has in heap and stacks.
func inUse() int64 {
	m := memory()
	return int64(m.HeapAlloc + m.StackInuse)
}
