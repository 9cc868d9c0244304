package sklookup

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/netnstest"
)

const (
	tcp = unix.IPPROTO_TCP
	udp = unix.IPPROTO_UDP
)

// How long to wait for what must come, and for what must not.
const (
	patience = 10 * time.Second
	nothing  = 50 * time.Millisecond
)

var everywhere netip.Addr

// Others cannot bind what is held, with any option; this process can.
func TestReserveKeepsOthersOff(t *testing.T) {
	table := open(t)
	other := newProcess(t)
	tests := []struct {
		host    string
		refused []string
		free    []string
	}{
		{"", []string{"0.0.0.0", "127.0.0.1", "198.51.100.9", "[::]", "[::1]", "[::ffff:127.0.0.1]"}, nil},
		{"0.0.0.0", []string{"0.0.0.0", "127.0.0.1", "[::]", "[::ffff:0.0.0.0]"}, []string{"[::1]"}},
		{"::", []string{"[::]", "[::1]"}, []string{"0.0.0.0", "127.0.0.1", "[::ffff:127.0.0.1]"}},
		{"127.0.0.1", []string{"0.0.0.0", "127.0.0.1", "[::]", "[::ffff:127.0.0.1]"}, []string{"127.0.0.2", "[::1]"}},
		{"::1", []string{"[::]", "[::1]"}, []string{"0.0.0.0", "127.0.0.1"}},
	}
	netnstest.Sysctl(t, "ipv4/ip_nonlocal_bind", "1")
	for _, tt := range tests {
		for _, proto := range []uint8{tcp, udp} {
			var host netip.Addr
			if tt.host != "" {
				host = netip.MustParseAddr(tt.host)
			}
			require.NoError(t, table.Reserve(proto, host, 20000, 29999))
			for _, port := range []int{20000, 24000, 29999} {
				for _, addr := range tt.refused {
					at := fmt.Sprint(addr, ":", port)
					for _, option := range []string{"", "reuseaddr", "reuseport", "reuseaddr,reuseport"} {
						require.Equal(t, unix.EADDRINUSE.Error(), other.bind(t, proto, at, option), "%s held, %d %s %s", tt.host, proto, at, option)
					}
				}
				for _, addr := range tt.free {
					require.Empty(t, other.bind(t, proto, fmt.Sprint(addr, ":", port)), "%s held, %d %s:%d", tt.host, proto, addr, port)
				}
			}
			for _, at := range []string{"0.0.0.0:19999", "[::]:30000"} {
				require.Empty(t, other.bind(t, proto, at))
			}
			require.Empty(t, other.bind(t, proto^tcp^udp, "0.0.0.0:20000"), "the other protocol")
			fd, err := bindSocket(int(proto), netip.MustParseAddrPort("0.0.0.0:20000"), "")
			require.NoError(t, err, "this process may")
			require.NoError(t, unix.Close(fd))
			require.NoError(t, table.Release(proto, host, 20000, 29999))
			require.Empty(t, other.bind(t, proto, "0.0.0.0:20000"))
		}
	}
	require.Empty(t, other.bind(t, udp, "0.0.0.0:30001"), "instead of the last one")
	require.NoError(t, table.Reserve(udp, netip.IPv4Unspecified(), 20000, 29999))
	require.Empty(t, other.bind(t, udp, "[::]:20000", "only6"))
}

func TestOtherNamespacesAreFree(t *testing.T) {
	table := open(t)
	require.NoError(t, table.Reserve(udp, everywhere, 1, 65535))
	h := netnstest.NewHost(t)
	require.NoError(t, h.Do(func() error {
		c, err := net.ListenPacket("udp", ":20000")
		if err != nil {
			return err
		}
		return c.Close()
	}))
}

// Ranges of several containers, parts of one, and what is left when another goes.
func TestReleaseInParts(t *testing.T) {
	table := open(t)
	other := newProcess(t)
	loopback := netip.MustParseAddr("127.0.0.1")
	require.NoError(t, table.Reserve(udp, everywhere, 20000, 29999))
	require.NoError(t, table.Reserve(udp, loopback, 30000, 31999))
	require.NoError(t, table.Reserve(udp, netip.MustParseAddr("127.0.0.2"), 31000, 32000))
	require.Equal(t, "20000-32000", reservedPorts(t))
	require.NoError(t, table.Release(udp, everywhere, 21000, 21999))
	require.Equal(t, "20000-20999,22000-32000", reservedPorts(t))
	in := func(addr string) bool { return other.bind(t, udp, addr) != "" }
	assert.True(t, in("0.0.0.0:20999"))
	assert.False(t, in("0.0.0.0:21000"))
	assert.False(t, in("[::]:21999"))
	assert.True(t, in("[::]:22000"))
	require.NoError(t, table.Release(udp, loopback, 30000, 31999))
	assert.False(t, in("127.0.0.1:31500"))
	assert.True(t, in("0.0.0.0:31500"), "127.0.0.2 has it")
	assert.False(t, in("0.0.0.0:30999"))
	require.NoError(t, table.Release(udp, everywhere, 1, 65535))
	assert.False(t, in("0.0.0.0:29999"))
	require.NoError(t, table.Release(udp, netip.MustParseAddr("127.0.0.2"), 31000, 32000))
	require.NoError(t, table.Release(udp, netip.MustParseAddr("127.0.0.2"), 31000, 32000), "again")
	require.Empty(t, table.kernel)
	require.Empty(t, reservedPorts(t))
}

func TestHoldersAreFound(t *testing.T) {
	table := open(t)
	others := []*process{newProcess(t), newProcess(t)}
	tests := []struct {
		at   string
		host string
		held bool
	}{
		{"0.0.0.0", "", true},
		{"127.0.0.1", "", true},
		{"[::]", "", true},
		{"[::1]", "", true},
		{"127.0.0.1", "127.0.0.1", true},
		{"127.0.0.2", "127.0.0.1", false},
		{"0.0.0.0", "127.0.0.1", true},
		{"0.0.0.0", "::", false},
		{"[::1]", "0.0.0.0", false},
		{"[::]", "0.0.0.0", true},
	}
	for _, tt := range tests {
		for _, proto := range []uint8{tcp, udp} {
			for i, port := range []int{20005, 20007} {
				require.Empty(t, others[i].bind(t, proto, fmt.Sprint(tt.at, ":", port)))
			}
			var host netip.Addr
			if tt.host != "" {
				host = netip.MustParseAddr(tt.host)
			}
			err := table.Reserve(proto, host, 20000, 29999)
			if !tt.held {
				require.NoError(t, err, "%+v", tt)
				require.NoError(t, table.Release(proto, host, 20000, 29999))
				continue
			}
			require.ErrorIs(t, err, unix.EADDRINUSE, "%+v", tt)
			inUse, ok := errors.AsType[*InUseError](err)
			require.True(t, ok)
			require.Equal(t, InUseError{20005, 1}, *inUse)
			require.Empty(t, table.kernel)
			require.Empty(t, reservedPorts(t))
		}
	}
	require.Empty(t, others[1].bind(t, tcp, "127.0.0.1:20007", "deaf"))
	require.Empty(t, others[0].bind(t, tcp, "127.0.0.1:30000"))
	require.NoError(t, table.Reserve(tcp, everywhere, 20000, 29999), "one that does not listen is not found")
}

// Connections that have one of the ports at their end go on.
func TestConnectionsAreNoHolders(t *testing.T) {
	table := open(t)
	ln, err := net.Listen("tcp4", "127.0.0.1:9999")
	require.NoError(t, err)
	defer ln.Close()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 20000}}
	c, err := d.Dial("tcp4", "127.0.0.1:9999")
	require.NoError(t, err)
	defer c.Close()
	server, err := ln.Accept()
	require.NoError(t, err)
	defer server.Close()
	require.NoError(t, table.Reserve(tcp, everywhere, 20000, 29999))
	_, err = server.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
	_, err = c.Read(make([]byte, 1))
	require.NoError(t, err)
}

func TestReservedPortsOfOthersStay(t *testing.T) {
	table := open(t)
	netnstest.Sysctl(t, ReservedPorts, "8080,20500-20600")
	var records []string
	table.sysctl.record = func(added string) error {
		records = append(records, added)
		return nil
	}
	require.NoError(t, table.Reserve(udp, everywhere, 20000, 20999))
	require.Equal(t, "8080,20000-20999", reservedPorts(t))
	require.NoError(t, table.Reserve(tcp, everywhere, 20000, 21999))
	require.Equal(t, "8080,20000-21999", reservedPorts(t))
	require.NoError(t, table.Release(udp, everywhere, 20000, 20999))
	require.Equal(t, "8080,20000-21999", reservedPorts(t))
	require.NoError(t, table.Release(tcp, everywhere, 20000, 21999))
	require.Equal(t, "8080,20500-20600", reservedPorts(t))
	require.Equal(t, []string{"20000-20499,20601-20999", "20000-20499,20601-21999", ""}, records)

	// What cannot be recorded is not done.
	table.sysctl.record = func(string) error { return unix.ENOSPC }
	require.ErrorIs(t, table.Reserve(udp, everywhere, 20000, 20999), unix.ENOSPC)
	require.Equal(t, "8080,20500-20600", reservedPorts(t))
	require.Empty(t, table.kernel)
	table.sysctl.record = func(string) error { return nil }
	require.NoError(t, os.WriteFile("/proc/sys/net/"+ReservedPorts, []byte("\n"), 0o644))
}

// A host whose ports are all held, of both protocols, can still open connections,
// send, and get answers.
func TestAllPorts(t *testing.T) {
	table := open(t)
	h := netnstest.NewHost(t)
	h.Connect("lan0", "eth0", "", []string{"198.51.100.1/24", "2001:db8:1::1/64"}, []string{"198.51.100.2/24", "2001:db8:1::2/64"})
	for _, proto := range []uint8{tcp, udp} {
		require.NoError(t, table.Reserve(proto, everywhere, 1, 65535))
		require.NoError(t, table.Steer(proto, everywhere, 1, 65535, false, false, true))
	}
	require.NotEmpty(t, reservedPorts(t))
	_, _, err := table.Sockets()
	require.NoError(t, err)
	require.NoError(t, h.Do(func() error {
		c, err := net.ListenPacket("udp4", "198.51.100.2:7")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = c.Close() })
		ln, err := net.Listen("tcp4", "198.51.100.2:7")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = ln.Close() })
		go func() {
			for buf := make([]byte, 99); ; {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(buf[:n], from)
			}
		}()
		return nil
	}))
	for range 500 {
		c, err := net.Dial("tcp4", "198.51.100.2:7")
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	ask := func(c net.Conn, send func() error) {
		t.Helper()
		defer c.Close()
		require.NoError(t, send())
		require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
		_, err = c.Read(make([]byte, 9))
		require.NoError(t, err)
	}
	for range 50 {
		c, err := net.Dial("udp4", "198.51.100.2:7")
		require.NoError(t, err)
		ask(c, func() error { _, err := c.Write([]byte("?")); return err })
		u, err := net.ListenUDP("udp4", nil) // not connected
		require.NoError(t, err)
		ask(u, func() error { _, err := u.WriteTo([]byte("?"), c.RemoteAddr()); return err })
	}
}

// Ports that the kernel chooses are never those that are held.
func TestTheKernelChoosesOthers(t *testing.T) {
	table := open(t)
	require.NoError(t, table.Reserve(udp, everywhere, 32768, 50000))
	for i := range 3000 {
		network, host := "udp4", "127.0.0.1:0"
		if i%2 == 1 {
			network, host = "udp6", "[::1]:0"
		}
		c, err := net.ListenPacket(network, host)
		require.NoError(t, err)
		port := c.LocalAddr().(*net.UDPAddr).Port
		require.NoError(t, c.Close())
		require.Greater(t, port, 50000)
	}
}

// link-local has its own interface.
func linkLocal(t *testing.T) (*netnstest.Host, string) {
	t.Helper()
	netnstest.Sysctl(t, "ipv6/conf/default/accept_dad", "0")
	h := netnstest.NewHost(t)
	h.Connect("lan0", "eth0", "", []string{"198.51.100.1/24", "2001:db8:1::1/64"}, []string{"198.51.100.2/24", "2001:db8:1::2/64"})
	i, err := net.InterfaceByName("lan0")
	require.NoError(t, err)
	found := ""
	require.Eventually(t, func() bool {
		addrs, err := i.Addrs()
		require.NoError(t, err)
		for _, a := range addrs {
			if ip := a.(*net.IPNet).IP; ip.IsLinkLocalUnicast() && ip.To4() == nil {
				found = ip.String() + "%lan0"
			}
		}
		return found != ""
	}, 10*time.Second, 10*time.Millisecond, "lan0 has no link-local address")
	return h, found
}

func TestSteer(t *testing.T) {
	table := open(t)
	_, ll := linkLocal(t)
	listeners, conns, err := table.Sockets()
	require.NoError(t, err)
	require.Len(t, listeners, 2)
	require.Len(t, conns, 2)
	for i := range 2 {
		t.Cleanup(func() { _, _ = listeners[i].Close(), conns[i].Close() })
	}
	askForDestination(t, conns)
	for _, proto := range []uint8{tcp, udp} {
		require.NoError(t, table.Reserve(proto, everywhere, 20000, 65535))
	}
	family := func(addr string) int {
		if netip.MustParseAddr(addr).Is4() {
			return 0
		}
		return 1
	}
	reachesTCP := func(addr string, port int, wait time.Duration) bool {
		t.Helper()
		c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, fmt.Sprint(port)), wait)
		if err != nil {
			return false
		}
		defer c.Close()
		ln := listeners[family(addr)]
		require.NoError(t, ln.SetDeadline(time.Now().Add(patience)))
		got, err := ln.Accept()
		require.NoError(t, err)
		defer got.Close()
		require.Equal(t, c.RemoteAddr().String(), got.LocalAddr().String())
		return true
	}
	reachesUDP := func(addr string, port int, wait time.Duration) bool {
		t.Helper()
		c, err := net.Dial("udp", net.JoinHostPort(addr, fmt.Sprint(port)))
		require.NoError(t, err)
		defer c.Close()
		_, err = c.Write([]byte("question"))
		require.NoError(t, err)
		front := conns[family(addr)]
		_, client, local, err := udpAnswer(front, wait)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
		require.NoError(t, err)
		require.Equal(t, netip.MustParseAddr(addr).WithZone(""), local.Addr())
		require.Equal(t, port, int(local.Port()))
		// A socket of the flow takes it over, and answers.
		own, err := (&net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), local.Port())), Control: reuse}).Dial("udp", client.String())
		require.NoError(t, err)
		defer own.Close()
		_, err = own.Write([]byte("answer"))
		require.NoError(t, err)
		_, err = c.Write([]byte("more"))
		require.NoError(t, err)
		buf := make([]byte, 64)
		for conn, want := range map[net.Conn]string{c: "answer", own: "more"} {
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
			n, err := conn.Read(buf)
			require.NoError(t, err)
			require.Equal(t, want, string(buf[:n]))
		}
		return true
	}
	all := []string{"127.0.0.1", "127.0.0.9", "198.51.100.1", "::1", "2001:db8:1::1", ll}
	tests := []struct {
		name  string
		steer func(proto uint8) error
		want  []string
	}{
		{"held", func(uint8) error { return nil }, nil},
		{"all", func(p uint8) error { return table.Steer(p, everywhere, 20000, 65535, true, true, true) }, all},
		{"IPv4", func(p uint8) error { return table.Steer(p, everywhere, 20000, 65535, true, false, false) }, all[:3]},
		{"what netfilter cannot", func(p uint8) error { return table.Steer(p, everywhere, 20000, 65535, false, false, true) }, []string{"::1", ll}},
		{"nothing", func(p uint8) error { return table.Steer(p, everywhere, 20000, 65535, false, false, false) }, nil},
	}
	for _, tt := range tests {
		for _, proto := range []uint8{tcp, udp} {
			require.NoError(t, tt.steer(proto))
		}
		for _, port := range []int{20000, 40000, 65535} {
			var viaTCP, viaUDP []string
			for _, addr := range all {
				wait := patience
				if !slices.Contains(tt.want, addr) {
					wait = nothing
				}
				if reachesTCP(addr, port, wait) {
					viaTCP = append(viaTCP, addr)
				}
				if reachesUDP(addr, port, wait) {
					viaUDP = append(viaUDP, addr)
				}
			}
			require.Equal(t, tt.want, viaTCP, "%s, port %d", tt.name, port)
			require.Equal(t, tt.want, viaUDP, "%s, port %d", tt.name, port)
		}
	}
	require.False(t, reachesTCP("::1", 19999, nothing))
	require.NoError(t, table.Close())
	require.False(t, reachesTCP("::1", 20000, nothing))
}

func reuse(_, _ string, c syscall.RawConn) error {
	var set error
	err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	return errors.Join(err, set)
}

func askForDestination(t *testing.T, conns []*net.UDPConn) {
	t.Helper()
	for i, c := range conns {
		raw, err := c.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			if i == 0 {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR, 1)
			}
		}))
		require.NoError(t, err)
	}
}

// A kernel that delivers broadcasts by another way, as the package comment says.
func TestBroadcastIsNotSteered(t *testing.T) {
	table := open(t)
	h, _ := linkLocal(t)
	_, conns, err := table.Sockets()
	require.NoError(t, err)
	askForDestination(t, conns)
	require.NoError(t, table.Reserve(udp, everywhere, 20000, 29999))
	require.NoError(t, table.Steer(udp, everywhere, 20000, 29999, true, true, true))
	send := func(to string) {
		require.NoError(t, h.Do(func() error {
			c, err := net.ListenUDP("udp4", nil)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.WriteToUDPAddrPort([]byte(to), netip.MustParseAddrPort(to))
			return err
		}))
	}
	send("198.51.100.255:20000")
	send("198.51.100.1:20000")
	got, _, _, err := udpAnswer(conns[0], patience)
	require.NoError(t, err)
	require.Equal(t, "198.51.100.1:20000", got)
}

func TestBadRanges(t *testing.T) {
	table := open(t)
	for _, err := range []error{
		table.Reserve(1, everywhere, 1, 2), table.Reserve(tcp, everywhere, 0, 2), table.Reserve(tcp, everywhere, 3, 2),
		table.Reserve(tcp, netip.MustParseAddr("fe80::1%lo"), 3, 4),
	} {
		require.ErrorContains(t, err, "no such ports")
	}
	require.NoError(t, table.Close())
	require.ErrorIs(t, table.Reserve(tcp, everywhere, 1, 2), errClosed)
	require.NoError(t, table.Release(tcp, everywhere, 1, 2))
	_, _, err := table.Sockets()
	require.ErrorIs(t, err, errClosed)
	require.NoError(t, table.Close())
}

func TestMissing(t *testing.T) {
	_, err := Open(Config{Cgroup: t.TempDir()})
	require.ErrorContains(t, err, "not a cgroup v2 hierarchy")
	_, err = Open(Config{SysctlDir: t.TempDir()})
	require.ErrorContains(t, err, ReservedPorts)
}

func TestPortSets(t *testing.T) {
	for _, list := range []string{"", "1", "1-65535", "0,8080,10000-19999,65535"} {
		s, err := parsePorts(list)
		require.NoError(t, err)
		require.Equal(t, list, s.String())
	}
	for _, list := range []string{"x", "5-3", "65536", "1,,2", "-"} {
		_, err := parsePorts(list)
		require.ErrorContains(t, err, "not a list of ports", list)
	}
}

// FuzzPortSet reads any text as a list of ports of the kernel's. What is taken
// reads the same again.
func FuzzPortSet(f *testing.F) {
	for _, list := range []string{"", "1", "1-65535", "0,8080,10000-19999,65535", "x", "5-3", "1,,2"} {
		f.Add(list)
	}
	f.Fuzz(func(t *testing.T, list string) {
		s, err := parsePorts(list)
		if err != nil {
			return
		}
		again, err := parsePorts(s.String())
		require.NoError(t, err)
		require.Equal(t, *s, *again)
	})
}
