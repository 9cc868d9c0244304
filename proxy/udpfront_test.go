package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// startSteered serves a socket of several addresses in place of one of several
// ports, which takes a BPF program: fronts are bound beside it all the same.
func startSteered(t *testing.T, p path, backend BackendFunc, cfg UDPConfig) *UDP {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		if cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := lc.ListenPacket(context.Background(), p.network, net.JoinHostPort(p.listen, "0"))
	require.NoError(t, err)
	proxy := ServeSteeredUDP(conn.(*net.UDPConn), backend, cfg)
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	return proxy
}

// fronts are the fronts' local addresses and clients.
func (p *UDP) fronts(t *testing.T) map[netip.AddrPort]netip.AddrPort {
	t.Helper()
	all := make(map[netip.AddrPort]netip.AddrPort)
	p.hold(func() {
		for _, f := range p.flows.flows {
			local, err := localName(f.front.fd)
			assert.NoError(t, err)
			a, _ := local.addrPort()
			all[peerOf(f.front.fd)] = a
		}
	})
	return all
}

// unread is how long the next datagram in a socket is, 0 if there is none.
func unread(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	require.NoError(t, err)
	return n
}

func TestSteeredUDPAnswersFromTheAddressThatTheClientUsed(t *testing.T) {
	eachPath(t, "udp", func(t *testing.T, p path) {
		backend, asked := startEcho(t, p.backend), make(chan netip.AddrPort, 1)
		proxy := startSteered(t, p, func(local netip.AddrPort) (netip.AddrPort, bool) {
			asked <- local
			return backend.addr(), true
		}, UDPConfig{})
		client, front := clientUDP(t, p), at(p.client, proxy.Addr())
		for _, size := range []int{3, 0, 1400, 65000} {
			exchange(t, client, front, make([]byte, size))
		}
		require.Equal(t, front, get(t, asked))
		require.Equal(t, map[netip.AddrPort]netip.AddrPort{addrPort(client.LocalAddr()): front}, proxy.fronts(t))
		require.Equal(t, 1, backend.flows())

		// What follows arrives at the front.
		proxy.hold(func() {
			sendUDP(t, client, front, []byte("steered?"))
			assert.Zero(t, unread(t, proxy.fd))
			for _, f := range proxy.flows.flows {
				assert.Equal(t, len("steered?"), unread(t, f.front.fd))
			}
		})
		got, from := receiveUDP(t, client)
		require.Equal(t, "steered?", string(got))
		require.Equal(t, front, from)
	})
}

// Many clients of the same port, in bursts, and none gets what is another's.
func TestSteeredUDPTellsClientsApart(t *testing.T) {
	noLeaks(t)
	backend := startEcho(t, "127.0.0.1")
	proxy := startSteered(t, path{network: "udp", listen: "0.0.0.0"}, to(backend.addr()), UDPConfig{})
	var clients []*net.UDPConn
	const each = 20
	for i := range 20 {
		c := clientUDP(t, localPath("udp"))
		clients = append(clients, c)
		for k := range each {
			sendUDP(t, c, at([]string{"127.0.0.1", "127.0.0.2"}[i%2], proxy.Addr()), fmt.Appendf(nil, "%d %d", i, k))
		}
	}
	for i, c := range clients {
		seen := make(map[string]bool)
		for range each {
			got, from := receiveUDP(t, c)
			require.Equal(t, at([]string{"127.0.0.1", "127.0.0.2"}[i%2], proxy.Addr()), from)
			seen[string(got)] = true
		}
		for k := range each {
			require.True(t, seen[fmt.Sprintf("%d %d", i, k)], "client %d, datagram %d", i, k)
		}
	}
	require.Len(t, proxy.fronts(t), len(clients))
}

// A front is open to all for a moment before it is connected.
func TestSteeredUDPSendsOnWhatAFrontGotOfOthers(t *testing.T) {
	noLeaks(t)
	backend := startEcho(t, "127.0.0.1")
	proxy := startSteered(t, localPath("udp"), to(backend.addr()), UDPConfig{})
	first, second, front := clientUDP(t, localPath("udp")), clientUDP(t, localPath("udp")), addrPort(proxy.Addr())
	exchange(t, first, front, []byte("hello"))
	proxy.hold(func() {
		for _, f := range proxy.flows.flows {
			var none sockname // AF_UNSPEC disconnects
			require.NoError(t, connect(f.front.fd, &none))
			sendUDP(t, second, front, []byte("stray"))
			require.Equal(t, len("stray"), unread(t, f.front.fd))
			name, _, err := newSockname(f.key.client)
			require.NoError(t, err)
			require.NoError(t, connect(f.front.fd, &name))
		}
	})
	got, from := receiveUDP(t, second)
	require.Equal(t, "stray", string(got))
	require.Equal(t, front, from)
	exchange(t, first, front, []byte("hello"))
	require.Equal(t, 2, backend.flows())
}

func TestSteeredUDPEndsFlowsWithTheirFronts(t *testing.T) {
	noLeaks(t)
	var files Files
	backend := startEcho(t, "127.0.0.1")
	proxy := startSteered(t, path{network: "udp", listen: "0.0.0.0"}, to(backend.addr()), UDPConfig{Files: &files, MaxFlows: 2, Idle: 2 * time.Second})
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		exchange(t, clientUDP(t, localPath("udp")), at(host, proxy.Addr()), []byte("hello"))
	}
	assert.LessOrEqual(t, files.taken.Load(), int64(2*(filesOfFlow+filesOfFront)))
	eventually(t, func() bool { return proxy.flowCount() == 0 && files.taken.Load() == 0 }, "idle flows stay")

	// A client that is gone does no harm.
	gone, front := clientUDP(t, localPath("udp")), at("127.0.0.1", proxy.Addr())
	exchange(t, gone, front, []byte("hello"))
	proxy.hold(func() {
		sendUDP(t, gone, front, []byte("last words"))
		require.NoError(t, gone.Close())
	})
	exchange(t, clientUDP(t, localPath("udp")), front, []byte("hello"))
	eventually(t, func() bool { return proxy.flowCount() == 0 && files.taken.Load() == 0 }, "idle flows stay")
}

func TestSteeredUDPTakesTwoFilesForAFlow(t *testing.T) {
	noLeaks(t)
	limitFiles(t, 200)
	var files Files
	backend := startEcho(t, "127.0.0.1")
	proxy := startSteered(t, localPath("udp"), to(backend.addr()), UDPConfig{Files: &files})
	files.taken.Store(100 - 6)
	for range 4 {
		exchange(t, clientUDP(t, localPath("udp")), addrPort(proxy.Addr()), []byte("hello"))
	}
	assert.Equal(t, 2, proxy.flowCount())
	assert.EqualValues(t, 98, files.taken.Load())
	require.NoError(t, proxy.Close())
	assert.EqualValues(t, 94, files.taken.Load())
}

func TestUDPResetWhereSparesTheOthers(t *testing.T) {
	for name, start := range map[string]func(*testing.T, path, BackendFunc, UDPConfig) *UDP{
		"steered": startSteered,
		"not":     func(t *testing.T, p path, b BackendFunc, cfg UDPConfig) *UDP { return startUDP(t, p, b, cfg) },
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			backend := startEcho(t, "127.0.0.1")
			proxy := start(t, path{network: "udp", listen: "0.0.0.0"}, to(backend.addr()), UDPConfig{})
			client := clientUDP(t, localPath("udp"))
			stays, goes := at("127.0.0.1", proxy.Addr()), at("127.0.0.2", proxy.Addr())
			exchange(t, client, stays, []byte("hello"))
			exchange(t, client, goes, []byte("hello"))
			require.Equal(t, 2, backend.flows())
			proxy.ResetWhere(func(local netip.AddrPort) bool { return local == goes })
			require.Equal(t, 1, proxy.flowCount())
			exchange(t, client, stays, []byte("hello"))
			require.Equal(t, 2, backend.flows(), "a flow that was to stay")
			exchange(t, client, goes, []byte("hello"))
			require.Equal(t, 3, backend.flows())
		})
	}
}

// The addresses are the same on both links; only the interface tells them apart.
func TestFrontsOfLinkLocalClients(t *testing.T) {
	noLeaks(t)
	l := newLANs(t)
	for i, th := range l.clients {
		c := th.listenUDP(t, "udp6", net.JoinHostPort(th.linkLocal(t, "fe80::2"), "5000"))
		var fd int
		l.host.do(t, func() error {
			link, err := netlink.LinkByName(fmt.Sprintf("lan%d", i))
			if err != nil {
				return err
			}
			fd, err = connectFront(flowKey{
				client:  netip.MustParseAddrPort("[fe80::2]:5000"),
				local:   netip.MustParseAddrPort("[fe80::1]:5353"),
				ifindex: uint32(link.Attrs().Index),
			})
			return err
		})
		t.Cleanup(func() { assert.NoError(t, unix.Close(fd)) })
		require.NoError(t, unix.Send(fd, []byte("hello"), 0))
		got, from := receiveUDP(t, c)
		require.Equal(t, "hello", string(got))
		require.Equal(t, "[fe80::1]:5353", from.String())
	}
}
