package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lans is a host on two LANs with a client in each. The clients have the same
// addresses, 198.51.100.2 and fe80::2, so that only the interface tells them
// apart. Every one is a network namespace without a name, which lives as long
// as its thread and its sockets; backends are in the tests' own namespace.
type lans struct {
	host    *thread
	clients [2]*thread
}

// The host's addresses on each of the two.
var lanAddrs = [2]string{"198.51.100.11", "198.51.100.12"}

func newLANs(t *testing.T) *lans {
	t.Helper()
	l := &lans{host: newThread(t)}
	// Replies to one LAN's client have their best route on the other.
	l.host.do(t, func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("0"), 0o644) })
	for i := range l.clients {
		c := newThread(t)
		near, far := fmt.Sprintf("lan%d", i), "eth0"
		l.host.do(t, func() error {
			la := netlink.NewLinkAttrs()
			la.Name = near
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: far, PeerNamespace: netlink.NsFd(c.ns)}); err != nil {
				return fmt.Errorf("make veth: %w", err)
			}
			return configure(near, lanAddrs[i]+"/24", "fe80::1/64", fmt.Sprintf("2001:db8::%d/128", 1+i))
		})
		c.do(t, func() error { return configure(far, "198.51.100.2/24", "fe80::2/64") })
		l.clients[i] = c
	}
	for _, c := range l.clients {
		c.awaitUp(t, "eth0")
	}
	for _, name := range []string{"lan0", "lan1"} {
		l.host.do(t, func() error { // the larger of all's and the interface's counts
			return os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("0"), 0o644)
		})
		l.host.awaitUp(t, name)
	}
	return l
}

func configure(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add %s to %s: %w", s, name, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// thread is a thread in a network namespace of its own.
type thread struct {
	ns    int
	work  chan func() error
	errs  chan error
	ended chan struct{}
}

func newThread(t *testing.T) *thread {
	t.Helper()
	th := &thread{work: make(chan func() error), errs: make(chan error), ended: make(chan struct{})}
	go th.run()
	t.Cleanup(func() { close(th.work); <-th.ended })
	th.do(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace (these tests need root): %w", err)
		}
		ns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		th.ns = ns
		t.Cleanup(func() { _ = unix.Close(ns) })
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return th
}

// run never unlocks its thread, which so ends with it, and with the thread the
// namespace.
func (th *thread) run() {
	defer close(th.ended)
	runtime.LockOSThread()
	for f := range th.work {
		th.errs <- f()
	}
}

func (th *thread) do(t *testing.T, f func() error) {
	t.Helper()
	th.work <- f
	require.NoError(t, <-th.errs)
}

func (th *thread) listenUDP(t *testing.T, network, addr string) (c *net.UDPConn) {
	t.Helper()
	th.do(t, func() error {
		pc, err := net.ListenPacket(network, addr)
		if err == nil {
			c = pc.(*net.UDPConn)
		}
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// awaitUp waits for the kernel to start the interface, which it does some time
// after it was set up. Until then it drops what is sent.
func (th *thread) awaitUp(t *testing.T, name string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	th.do(t, func() error {
		for {
			link, err := netlink.LinkByName(name)
			if err != nil || link.Attrs().OperState == netlink.OperUp {
				return err
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s is %s", name, link.Attrs().OperState)
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// linkLocal is host on the only interface of a client. Its zone is a number,
// because package net remembers names of whatever namespace it asked first.
func (th *thread) linkLocal(t *testing.T, host string) (addr string) {
	t.Helper()
	th.do(t, func() error {
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			addr = fmt.Sprintf("%s%%%d", host, link.Attrs().Index)
		}
		return err
	})
	return addr
}

func TestUDPAnswersLinkLocalClientsOnTheirLink(t *testing.T) {
	for _, network := range []string{"udp", "udp6"} {
		t.Run(network, func(t *testing.T) {
			noLeaks(t)
			l, backend := newLANs(t), startEcho(t, "127.0.0.1")
			asked := make(chan netip.AddrPort, 2)
			proxy := ServeUDP(l.host.listenUDP(t, network, "[::]:5353"), func(local netip.AddrPort) (netip.AddrPort, bool) {
				asked <- local
				return backend.addr(), true
			}, UDPConfig{})
			t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
			for i, th := range l.clients {
				c := th.listenUDP(t, "udp6", net.JoinHostPort(th.linkLocal(t, "fe80::2"), "5000"))
				front := netip.MustParseAddrPort(net.JoinHostPort(th.linkLocal(t, "fe80::1"), "5353"))
				for _, size := range []int{4, 0, 9000} {
					sendUDP(t, c, front, make([]byte, size))
					got, from := receiveUDP(t, c)
					require.Len(t, got, size)
					require.Equal(t, plain(front), from)
				}
				require.Equal(t, plain(front), get(t, asked))
				require.Equal(t, i+1, backend.flows(), "one flow for each client")
			}
		})
	}
}

// The host's address is the same for both clients and needs no zone; theirs do.
func TestUDPTellsLinkLocalClientsOfAGlobalAddressApart(t *testing.T) {
	noLeaks(t)
	l, backend := newLANs(t), startEcho(t, "127.0.0.1")
	proxy := ServeUDP(l.host.listenUDP(t, "udp", "[::]:5353"), to(backend.addr()), UDPConfig{})
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	front := netip.MustParseAddrPort("[2001:db8::1]:5353")
	for i, th := range l.clients {
		th.do(t, func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			all := &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Gw: net.ParseIP("fe80::1")})
		})
		c := th.listenUDP(t, "udp6", net.JoinHostPort(th.linkLocal(t, "fe80::2"), "5000"))
		exchange(t, c, front, []byte{byte(i)})
		require.Equal(t, i+1, backend.flows(), "one flow for each client")
	}
}

func TestUDPAnswersABroadcastOnItsLAN(t *testing.T) {
	for _, network := range []string{"udp", "udp4"} {
		for _, dst := range []string{"255.255.255.255", "198.51.100.255"} {
			t.Run(network+" "+dst, func(t *testing.T) {
				noLeaks(t)
				l, backend := newLANs(t), startEcho(t, "127.0.0.1")
				asked := make(chan netip.AddrPort, 2)
				proxy := ServeUDP(l.host.listenUDP(t, network, ":27015"), func(local netip.AddrPort) (netip.AddrPort, bool) {
					asked <- local
					return backend.addr(), true
				}, UDPConfig{})
				t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
				for i, th := range l.clients {
					c := th.listenUDP(t, "udp4", "198.51.100.2:5000")
					sendUDP(t, c, netip.MustParseAddrPort(dst+":27015"), []byte("who is there"))
					got, from := receiveUDP(t, c)
					require.Equal(t, "who is there", string(got))
					require.Equal(t, lanAddrs[i]+":27015", from.String())
					require.Equal(t, dst+":27015", get(t, asked).String())
					require.Equal(t, i+1, backend.flows(), "one flow for each client")
				}
			})
		}
	}
}

func TestUDPAnswersLinkLocalMulticastOnItsLink(t *testing.T) {
	noLeaks(t)
	l, backend := newLANs(t), startEcho(t, "127.0.0.1")
	proxy := ServeUDP(l.host.listenUDP(t, "udp6", "[::]:5353"), to(backend.addr()), UDPConfig{})
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	for _, th := range l.clients {
		c := th.listenUDP(t, "udp6", net.JoinHostPort(th.linkLocal(t, "fe80::2"), "5000"))
		all := netip.MustParseAddrPort(net.JoinHostPort(th.linkLocal(t, "ff02::1"), "5353"))
		sendUDP(t, c, all, []byte("who is there"))
		got, from := receiveUDP(t, c)
		require.Equal(t, "who is there", string(got))
		require.True(t, from.Addr().IsLinkLocalUnicast(), "from %s", from)
	}
}

func TestTCPServesLinkLocalClients(t *testing.T) {
	noLeaks(t)
	l, backend := newLANs(t), listenTCP(t, "tcp", "127.0.0.1")
	var ln *net.TCPListener
	l.host.do(t, func() error {
		any, err := net.Listen("tcp", "[::]:8080")
		if err == nil {
			ln = any.(*net.TCPListener)
		}
		return err
	})
	asked := make(chan netip.AddrPort, 2)
	proxy := ServeTCP(ln, func(local netip.AddrPort) (netip.AddrPort, bool) {
		asked <- local
		return addrPort(backend.Addr()), true
	}, TCPConfig{})
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	for _, th := range l.clients {
		front := net.JoinHostPort(th.linkLocal(t, "fe80::1"), "8080")
		var c net.Conn
		th.do(t, func() (err error) {
			c, err = net.DialTimeout("tcp", front, patience)
			return err
		})
		t.Cleanup(func() { _ = c.Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
		b := acceptTCP(t, backend)
		write(t, c, "ask")
		requireRead(t, b, "ask")
		require.Equal(t, plain(netip.MustParseAddrPort(front)), get(t, asked))
	}
}
