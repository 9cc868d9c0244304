package proxy

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hold has the loop find what f sends all at once.
func (p *UDP) hold(f func()) { p.mu.Lock(); defer p.mu.Unlock(); f() }

// datagrams have the sizes, and tell their place if there is room.
func datagrams(sizes ...int) (all [][]byte) {
	for i, size := range sizes {
		b := make([]byte, size)
		for j := range b {
			b[j] = byte(i + j/3)
		}
		all = append(all, b)
	}
	return all
}

func times(n, size int) (all []int) {
	for range n {
		all = append(all, size)
	}
	return all
}

// burst sends datagrams to the backend at once, and the same back at once.
func burst(t *testing.T, p *UDP, client, backend *net.UDPConn, front netip.AddrPort, all [][]byte) {
	t.Helper()
	p.hold(func() {
		for _, b := range all {
			sendUDP(t, client, front, b)
		}
	})
	var flow netip.AddrPort
	for i, want := range all {
		got, from := receiveUDP(t, backend)
		require.Equal(t, want, got, "request %d", i)
		flow = from
	}
	p.hold(func() {
		for _, b := range all {
			sendUDP(t, backend, flow, b)
		}
	})
	for i, want := range all {
		got, from := receiveUDP(t, client)
		require.Equal(t, want, got, "reply %d", i)
		require.Equal(t, plain(front), from)
	}
}

func roomy(t *testing.T, c *net.UDPConn) *net.UDPConn {
	t.Helper()
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) { enlargeBuffers(int(fd)) }))
	return c
}

func TestUDPKeepsBoundariesAndOrderOfABurst(t *testing.T) {
	eachPath(t, "udp", func(t *testing.T, p path) {
		for _, segment := range []bool{true, false} {
			backend := roomy(t, listenUDP(t, "udp", p.backend))
			proxy := startUDP(t, p, to(addrPort(backend.LocalAddr())), UDPConfig{})
			if !segment { // a kernel of before 4.18
				proxy.hold(func() { proxy.loop.segment = 0 })
			}
			client, front := roomy(t, clientUDP(t, p)), at(p.client, proxy.Addr())
			for _, sizes := range [][]int{
				{64, 64, 64, 10, 64, 64, 0, 0, 64, 65, 65, 64, 1, 0, 1, 1},
				times(200, 33), // more than a batch, and than a message takes
				times(60, 1400),
				{65507, 65507, 9000, 9000, 9000, 40000, 40000},
				{0},
			} {
				burst(t, proxy, client, backend, front, datagrams(sizes...))
			}
			require.NoError(t, proxy.Close())
		}
	})
}

// Datagrams that are longer than the packets of the way to the client cannot
// leave as one message.
func TestUDPCarriesABurstOfLongDatagrams(t *testing.T) {
	noLeaks(t)
	l, backend := newLANs(t), roomy(t, listenUDP(t, "udp4", "127.0.0.1"))
	where := to(addrPort(backend.LocalAddr()))
	for _, host := range []string{lanAddrs[0], "fe80::1"} {
		proxy := ServeUDP(l.host.listenUDP(t, "udp", "[::]:5353"), where, UDPConfig{})
		t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
		network, from, dst := "udp4", "198.51.100.2", host
		if host == "fe80::1" {
			network, from, dst = "udp6", l.clients[0].linkLocal(t, "fe80::2"), l.clients[0].linkLocal(t, host)
		}
		client := l.clients[0].listenUDP(t, network, net.JoinHostPort(from, "5000"))
		front := netip.MustParseAddrPort(net.JoinHostPort(dst, "5353"))
		roomy(t, client)
		for range 2 { // the second time it is known
			burst(t, proxy, client, backend, front, datagrams(9000, 9000, 9000, 100, 1472, 1472, 1452, 1453, 1453, 1400, 1400, 9000, 9000))
		}
		require.NoError(t, proxy.Close())
	}
}

// Requests of more clients at once than there may be flows all arrive.
func TestUDPSendsRequestsOfFlowsThatGiveWay(t *testing.T) {
	noLeaks(t)
	p := localPath("udp")
	backend := startEcho(t, p.backend)
	proxy := startUDP(t, p, to(backend.addr()), UDPConfig{MaxFlows: 2})
	proxy.hold(func() {
		for range 9 {
			c := clientUDP(t, p)
			for range 3 {
				sendUDP(t, c, addrPort(proxy.Addr()), []byte("ask"))
			}
		}
	})
	eventually(t, func() bool { return total(backend) == 27 }, "requests are lost")
	require.Equal(t, 9, backend.flows())
	require.Equal(t, 2, proxy.flowCount())
}

// A device that is slower than the backend holds replies up, and loses none.
func TestUDPRepliesWaitForASlowDevice(t *testing.T) {
	noLeaks(t)
	l, backend := newLANs(t), roomy(t, listenUDP(t, "udp4", "127.0.0.1"))
	l.host.do(t, func() error {
		link, err := netlink.LinkByName("lan0")
		if err != nil {
			return err
		}
		const rate = 1 << 20 // bytes a second
		return netlink.QdiscAdd(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)},
			Rate:       rate, Limit: 1 << 20, Buffer: 20000,
		})
	})
	proxy := ServeUDP(l.host.listenUDP(t, "udp", "[::]:5353"), to(addrPort(backend.LocalAddr())), UDPConfig{})
	t.Cleanup(func() { assert.NoError(t, proxy.Close()) })
	require.NoError(t, proxy.Control(func(fd uintptr) {
		assert.NoError(t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10))
	}))
	front := netip.MustParseAddrPort(lanAddrs[0] + ":5353")
	var clients []*net.UDPConn
	var flows []netip.AddrPort
	for _, addr := range []string{"198.51.100.2:5000", "198.51.100.2:5001"} {
		c := roomy(t, l.clients[0].listenUDP(t, "udp4", addr))
		sendUDP(t, c, front, []byte("ask"))
		_, flow := receiveUDP(t, backend)
		clients, flows = append(clients, c), append(flows, flow)
	}
	const replies = 150
	proxy.hold(func() {
		for i := range replies {
			for _, flow := range flows {
				sendUDP(t, backend, flow, binary.BigEndian.AppendUint32(make([]byte, 1000), uint32(i)))
			}
		}
	})
	waited := false
	eventually(t, func() bool {
		proxy.hold(func() { waited = proxy.outlet.waiting.some() })
		return waited
	}, "nothing waits")
	for _, b := range datagrams(5, 5) {
		sendUDP(t, clients[0], front, b)
		got, _ := receiveUDP(t, backend)
		require.Equal(t, b, got, "requests go on")
	}
	for i := range replies {
		for _, c := range clients {
			got, _ := receiveUDP(t, c)
			require.Equal(t, uint32(i), binary.BigEndian.Uint32(got[1000:]))
		}
	}
	proxy.hold(func() { waited = proxy.outlet.waiting.some() })
	require.False(t, waited)
	burst(t, proxy, clients[0], backend, front, datagrams(5, 6, 7))
}
