package portmap_test

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/portmap"
)

// echo answers TCP and UDP on a port with what it gets.
func echo(b *testing.B, at *netnstest.Host, port int) {
	b.Helper()
	require.NoError(b, at.Do(func() error {
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{Port: port})
		if err != nil {
			return err
		}
		b.Cleanup(func() { _ = ln.Close() })
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
		if err != nil {
			return err
		}
		b.Cleanup(func() { _ = c.Close() })
		go echoTCP(ln)
		go echoUDP(c)
		return nil
	}))
}

func echoTCP(ln *net.TCPListener) {
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 64<<10))
		}()
	}
}

func echoUDP(c *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteToUDPAddrPort(buf[:n], from)
	}
}

// BenchmarkThisHost is one client of this host that asks a container and waits
// for the answer: straight to its address, by [::1] and hooks, and by [::1] and
// the proxy, to which a client that is bound to ::1 is left. What is compared
// has to be run in turns: one run of all ways, and again.
func BenchmarkThisHost(b *testing.B) {
	w := newTown(b)
	echo(b, w.c2, 7)
	for _, of := range []struct {
		name   string
		to     portmap.Target
		direct netip.Addr
	}{{"IPv6", target("e1", 2), target("", 2).IPv6}, {"IPv4 alone", only4(target("e1", 2)), target("", 2).IPv4}} {
		_, err := w.Publish("s1", of.to, bindings(b, "7:7", "7:7/udp"), recordNothing)
		require.NoError(b, err)
		here := netip.AddrPortFrom(netip.IPv6Loopback(), 7)
		ways := []struct {
			name  string
			to    netip.AddrPort
			local netip.Addr
		}{{"direct", netip.AddrPortFrom(of.direct, 7), netip.Addr{}}, {"hooks", here, netip.Addr{}}, {"proxy", here, netip.IPv6Loopback()}}
		for _, path := range []struct {
			name  string
			bench func(b *testing.B, to netip.AddrPort, local netip.Addr)
		}{{"TCP", tcpRoundTrips}, {"TCP connect", tcpConnects}, {"TCP bulk", tcpBulk}, {"UDP connected", udpConnected}, {"UDP unconnected", udpUnconnected}} {
			for _, way := range ways {
				if way.name == "hooks" && w.hooks == nil {
					continue
				}
				b.Run(of.name+"/"+path.name+"/"+way.name, func(b *testing.B) { path.bench(b, way.to, way.local) })
			}
		}
	}
}

// localTCP is a bound address for package net, nil for none; so is localUDP.
func localTCP(local netip.Addr) *net.TCPAddr {
	if !local.IsValid() {
		return nil
	}
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
}

func localUDP(local netip.Addr) *net.UDPAddr {
	if !local.IsValid() {
		return nil
	}
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
}

func exchange(b *testing.B, c net.Conn, buf []byte) {
	if _, err := c.Write(buf); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf); err != nil {
		b.Fatal(err)
	}
}

func tcpRoundTrips(b *testing.B, to netip.AddrPort, local netip.Addr) {
	c, err := net.DialTCP("tcp", localTCP(local), net.TCPAddrFromAddrPort(to))
	require.NoError(b, err)
	defer c.Close()
	buf := make([]byte, 64)
	for b.Loop() {
		exchange(b, c, buf)
	}
}

// tcpConnects closes with a reset, so that no port is left in TIME_WAIT.
func tcpConnects(b *testing.B, to netip.AddrPort, local netip.Addr) {
	buf := make([]byte, 64)
	for b.Loop() {
		c, err := net.DialTCP("tcp", localTCP(local), net.TCPAddrFromAddrPort(to))
		if err != nil {
			b.Fatal(err)
		}
		_ = c.SetLinger(0)
		exchange(b, c, buf)
		_ = c.Close()
	}
}

func tcpBulk(b *testing.B, to netip.AddrPort, local netip.Addr) {
	c, err := net.DialTCP("tcp", localTCP(local), net.TCPAddrFromAddrPort(to))
	require.NoError(b, err)
	defer c.Close()
	const size = 1 << 20
	b.SetBytes(2 * size)
	buf, back := make([]byte, size), make([]byte, size)
	for b.Loop() {
		wrote := make(chan error)
		go func() {
			_, err := c.Write(buf)
			wrote <- err
		}()
		if _, err := io.ReadFull(c, back); err != nil {
			b.Fatal(err)
		}
		if err := <-wrote; err != nil {
			b.Fatal(err)
		}
	}
}

func udpConnected(b *testing.B, to netip.AddrPort, local netip.Addr) {
	c, err := net.DialUDP("udp", localUDP(local), net.UDPAddrFromAddrPort(to))
	require.NoError(b, err)
	defer c.Close()
	require.NoError(b, c.SetDeadline(time.Now().Add(time.Minute)))
	buf := make([]byte, 64)
	for b.Loop() {
		exchange(b, c, buf)
	}
}

func udpUnconnected(b *testing.B, to netip.AddrPort, local netip.Addr) {
	c, err := net.ListenUDP("udp", localUDP(local))
	require.NoError(b, err)
	defer c.Close()
	require.NoError(b, c.SetDeadline(time.Now().Add(time.Minute)))
	buf := make([]byte, 64)
	for b.Loop() {
		if _, err := c.WriteToUDPAddrPort(buf, to); err != nil {
			b.Fatal(err)
		}
		if _, _, err := c.ReadFromUDPAddrPort(buf); err != nil {
			b.Fatal(err)
		}
	}
}
