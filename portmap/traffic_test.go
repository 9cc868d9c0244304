package portmap_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/hooks"
	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/internal/sklookup"
	"github.com/portolan/portolan/portmap"
)

// town is a Docker host, the tests' own namespace, with everything real, hooks
// included where the host has what they need and PORTOLAN_HOOKS is not off:
//
//	neighbour 198.51.100.2 ─── lan0 198.51.100.1
//	c2 172.20.0.2, c3 172.20.0.3 ── plbr0
//
// with the same last numbers in IPv6: 2001:db8:1::, fd20::.
type town struct {
	*portmap.Publisher
	mapper            *portmap.NFTables
	hooks             portmap.Hooks // nil for none
	neighbour, c2, c3 *netnstest.Host
}

const answerWait = 20 * time.Second

func newTown(t testing.TB) *town {
	t.Helper()
	return newTownWith(t, nil)
}

// openRanges holds ranges until the test ends, or says why not.
func openRanges(t testing.TB) portmap.Ranges {
	t.Helper()
	if os.Getenv("PORTOLAN_RANGES") == "sockets" {
		return nil
	}
	table, err := sklookup.Open(sklookup.Config{})
	if err != nil {
		t.Log("without sk_lookup: ", err)
		return nil
	}
	t.Cleanup(func() { assert.NoError(t, table.Close()) })
	return table
}

func newTownWith(t testing.TB, ranges portmap.Ranges, changes ...func(*portmap.PublisherConfig)) *town {
	t.Helper()
	netnstest.Sysctl(t, "ipv4/ip_forward", "1")
	netnstest.Sysctl(t, "ipv6/conf/all/forwarding", "1")
	netnstest.Sysctl(t, "netfilter/nf_conntrack_acct", "1")
	// Without duplicate address detection link-local addresses, and with them
	// neighbour discovery, work at once.
	netnstest.Sysctl(t, "ipv6/conf/default/accept_dad", "0")
	w := &town{neighbour: netnstest.NewHost(t), c2: netnstest.NewHost(t), c3: netnstest.NewHost(t)}
	for _, h := range []*netnstest.Host{w.neighbour, w.c2, w.c3} {
		require.NoError(t, h.Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644)
		}))
	}
	w.neighbour.Connect("lan0", "eth0", "", []string{"198.51.100.1/24", "2001:db8:1::1/64"}, []string{"198.51.100.2/24", "2001:db8:1::2/64"})
	w.neighbour.Route("198.51.100.1")
	netnstest.Bridge(t, "plbr0", "172.20.0.1/16", "fd20::1/64")
	for i, h := range []*netnstest.Host{w.c2, w.c3} {
		h.Connect(fmt.Sprint("veth", i+2), "eth0", "plbr0", nil, []string{fmt.Sprintf("172.20.0.%d/16", i+2), fmt.Sprintf("fd20::%d/64", i+2)})
		h.Route("172.20.0.1")
		h.Route("fd20::1")
	}
	var err error
	w.mapper, err = portmap.NewNFTables(nil)
	require.NoError(t, err)
	require.NoError(t, w.mapper.Load([]portmap.Network{rigNet}, nil))
	netnstest.Sysctl(t, "ipv4/conf/plbr0/route_localnet", "1")
	w.hooks = openHooks(t)
	cfg := portmap.PublisherConfig{Mapper: w.mapper, Ranges: ranges, Hooks: w.hooks}
	for _, change := range changes {
		change(&cfg)
	}
	w.Publisher = portmap.NewPublisher(cfg)
	t.Cleanup(func() {
		assert.NoError(t, w.Close())
		assert.NoError(t, w.mapper.Load(nil, nil))
		assert.NoError(t, w.mapper.Close())
	})
	return w
}

// openHooks attaches hooks until the test ends, or says why not.
func openHooks(t testing.TB) portmap.Hooks {
	t.Helper()
	if os.Getenv("PORTOLAN_HOOKS") == "off" {
		return nil
	}
	h, err := hooks.Open("", nil)
	if err != nil {
		t.Log("without hooks: ", err)
		return nil
	}
	t.Cleanup(func() { assert.NoError(t, h.Close()) })
	return h
}

func (w *town) publish(t testing.TB, sandbox string, to portmap.Target, specs ...string) {
	t.Helper()
	_, err := w.Publish(sandbox, to, bindings(t, specs...), recordNothing)
	require.NoError(t, err)
}

// only4 is a target without its IPv6 address.
func only4(t portmap.Target) portmap.Target {
	t.IPv6 = netip.Addr{}
	return t
}

func only6(t portmap.Target) portmap.Target {
	t.IPv4 = netip.Addr{}
	return t
}

// say has a host answer every question on a UDP and a TCP port with a word and
// the question.
func say(t testing.TB, h *netnstest.Host, port int, word string) {
	t.Helper()
	require.NoError(t, h.Do(func() error {
		c, err := net.ListenPacket("udp", fmt.Sprint(":", port))
		if err != nil {
			return err
		}
		ln, err := net.Listen("tcp", fmt.Sprint(":", port))
		if err != nil {
			return errors.Join(err, c.Close())
		}
		ended := make(chan struct{}, 2)
		t.Cleanup(func() {
			_, _ = c.Close(), ln.Close()
			<-ended
			<-ended
		})
		go func() {
			defer func() { ended <- struct{}{} }()
			buf := make([]byte, 2048)
			for {
				n, from, err := c.ReadFrom(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					_, _ = c.WriteTo(append([]byte(word), buf[:n]...), from)
				}
			}
		}()
		go func() {
			defer func() { ended <- struct{}{} }()
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				buf := make([]byte, 99)
				n, _ := conn.Read(buf)
				_, _ = conn.Write(append([]byte(word), buf[:n]...))
				_ = conn.Close()
			}
		}()
		return nil
	}))
}

// place is where a client is: a Host, or here.
type place interface{ Do(f func() error) error }

type here struct{}

func (here) Do(f func() error) error { return f() }

// ask sends one question and returns the answer.
func ask(from place, network, to string, wait time.Duration) (answer string, err error) {
	err = from.Do(func() error {
		c, err := net.DialTimeout(network, to, wait)
		if err != nil {
			return err
		}
		defer c.Close()
		answer, err = question(c, wait)
		return err
	})
	return answer, err
}

// asked numbers all questions, so that a late answer is not taken for that to
// another.
var asked atomic.Int64

func question(c net.Conn, wait time.Duration) (string, error) {
	q := fmt.Sprint(" to ", asked.Add(1))
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte(q)); err != nil {
		return "", err
	}
	buf := make([]byte, 99)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return "", err
		}
		if word, found := strings.CutSuffix(string(buf[:n]), q); found {
			return word, nil
		}
	}
}

// requireSays wants a word over UDP and TCP at each address.
func requireSays(t *testing.T, from place, word string, to ...string) {
	t.Helper()
	for _, a := range to {
		for _, network := range []string{"udp", "tcp"} {
			got, err := ask(from, network, a, answerWait)
			require.NoError(t, err, "%s %s", network, a)
			require.Equal(t, word, got, "%s %s", network, a)
		}
	}
}

// requireRefused wants a refusal, not silence.
func requireRefused(t *testing.T, from place, to ...string) {
	t.Helper()
	for _, a := range to {
		for _, network := range []string{"udp", "tcp"} {
			_, err := ask(from, network, a, answerWait)
			require.ErrorIs(t, err, unix.ECONNREFUSED, "%s %s", network, a)
		}
	}
}

// linkLocal is lan0's link-local address, as a host writes it that reaches it by
// an interface. The zone is a number: package net remembers names of interfaces
// for the whole process, and there are several namespaces.
func linkLocal(t *testing.T, from place, by string) netip.Addr {
	t.Helper()
	l, err := netlink.LinkByName("lan0")
	require.NoError(t, err)
	var ip netip.Addr
	require.Eventually(t, func() bool { // it comes with the carrier
		addrs, _ := netlink.AddrList(l, netlink.FAMILY_V6)
		i := slices.IndexFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
		if i >= 0 {
			ip, _ = netip.AddrFromSlice(addrs[i].IP)
		}
		return i >= 0
	}, answerWait, time.Millisecond, "lan0 has no link-local address")
	require.NoError(t, from.Do(func() error {
		l, err := netlink.LinkByName(by)
		if err == nil {
			ip = ip.WithZone(fmt.Sprint(l.Attrs().Index))
		}
		return err
	}))
	return ip
}

// TestServed asks for a published port in every way that a host and its
// neighbour have, of containers with one address family and with both.
func TestServed(t *testing.T) {
	testServed(t, newTown(t), 80, func(host string) []string { return []string{host + "8080:80/udp", host + "8080:80"} })
}

// TestServedOfRanges is TestServed of a port among many, which have no socket
// each.
func TestServedOfRanges(t *testing.T) {
	ranges := openRanges(t)
	if ranges == nil {
		t.Skip("without sk_lookup a long range is sockets")
	}
	w := newTownWith(t, ranges)
	testServed(t, w, 8080, func(host string) []string {
		return []string{host + "7000-9999:7000-9999/udp", host + "7000-9999:7000-9999"}
	})
	// Other numbers inside, and first and last port.
	say(t, w.c3, 20000, "first")
	say(t, w.c3, 21999, "last")
	w.publish(t, "s2", only4(target("e2", 3)), "30000-31999:20000-21999/udp", "30000-31999:20000-21999")
	requireSays(t, here{}, "first", "127.0.0.1:30000", "[::1]:30000")
	requireSays(t, here{}, "last", "127.0.0.1:31999", "[::1]:31999")
	// Who moves takes his clients along.
	say(t, w.c2, 20000, "moved")
	c, err := net.Dial("udp", "[::1]:30000")
	require.NoError(t, err)
	defer c.Close()
	require.Equal(t, "first", answerOf(t, c))
	w.publish(t, "s2", only4(target("e3", 2)), "30000-31999:20000-21999/udp", "30000-31999:20000-21999")
	require.Equal(t, "moved", answerOf(t, c))
	requireSays(t, here{}, "moved", "127.0.0.1:30000", "[::1]:30000")
}

// TestServedOfAllPorts is TestServed where there is no other port.
func TestServedOfAllPorts(t *testing.T) {
	ranges := openRanges(t)
	if ranges == nil {
		t.Skip("without sk_lookup all ports are more sockets than a process may have")
	}
	testServed(t, newTownWith(t, ranges), 8080, func(host string) []string {
		return []string{host + "1-65535:1-65535/udp", host + "1-65535:1-65535"}
	})
}

func answerOf(t *testing.T, c net.Conn) string {
	t.Helper()
	word, err := question(c, answerWait)
	require.NoError(t, err)
	return word
}

// testServed publishes ports of which 8080 leads to a port of c2.
func testServed(t *testing.T, w *town, port int, specs func(host string) []string) {
	say(t, w.c2, port, "two")
	local4, local6 := "127.0.0.1:8080", "[::1]:8080"
	lan4, lan6 := "198.51.100.1:8080", "[2001:db8:1::1]:8080"
	llHere := netip.AddrPortFrom(linkLocal(t, here{}, "lan0"), 8080).String()
	llThere := netip.AddrPortFrom(linkLocal(t, w.neighbour, "eth0"), 8080).String()
	requireSays := func(from place, to ...string) { t.Helper(); requireSays(t, from, "two", to...) }

	w.publish(t, "s1", target("e1", 2), specs("")...)
	requireSays(here{}, local4, local6, lan4, lan6, "127.7.7.7:8080", "172.20.0.1:8080", "[fd20::1]:8080", llHere)
	requireSays(w.neighbour, lan4, lan6)
	requireRefused(t, w.neighbour, llThere)
	requireSays(w.c2, lan4, lan6, "172.20.0.1:8080", "[fd20::1]:8080")
	requireSays(w.c3, lan4, lan6)

	w.publish(t, "s1", only4(target("e1", 2)), specs("")...)
	requireSays(here{}, local4, local6, lan4, lan6, llHere)
	requireSays(w.neighbour, lan4)
	requireRefused(t, w.neighbour, lan6, llThere)
	requireRefused(t, w.c3, lan6)

	w.publish(t, "s1", only6(target("e1", 2)), specs("")...)
	requireSays(here{}, local4, local6, lan4, lan6, llHere)
	requireSays(w.neighbour, lan6)
	requireRefused(t, w.neighbour, lan4, llThere)

	remote := only4(target("e1", 2))
	remote.ProxyRemote = true
	w.publish(t, "s1", remote, specs("")...)
	requireSays(here{}, local4, local6, lan4, lan6, llHere)
	requireSays(w.neighbour, lan4, lan6, llThere)

	require.NoError(t, w.Release("s1"))
	w.publish(t, "s1", only4(target("e1", 2)), specs("[::1]:")...)
	requireSays(here{}, local6)
	requireRefused(t, w.neighbour, lan4, lan6)

	require.NoError(t, w.Release("s1"))
	requireRefused(t, here{}, local4, local6, lan4, lan6)
	requireRefused(t, w.neighbour, lan4, lan6)
}

// TestServedBroadcast is how devices are found: a neighbour asks everybody.
func TestServedBroadcast(t *testing.T) {
	w := newTown(t)
	say(t, w.c2, 1900, "two")
	say(t, w.c3, 1900, "three")
	w.publish(t, "s1", target("e1", 2), "1900:1900/udp")
	shout := func(to string) (answer, from string) {
		require.NoError(t, w.neighbour.Do(func() error {
			c, err := net.ListenUDP("udp4", nil)
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.WriteToUDPAddrPort([]byte("?"), netip.MustParseAddrPort(to)); err != nil {
				return err
			}
			_ = c.SetReadDeadline(time.Now().Add(answerWait))
			buf := make([]byte, 99)
			n, peer, err := c.ReadFromUDPAddrPort(buf)
			answer, from = strings.TrimSuffix(string(buf[:n]), "?"), peer.String()
			return err
		}))
		return answer, from
	}
	for _, to := range []string{"198.51.100.255:1900", "255.255.255.255:1900"} {
		answer, from := shout(to)
		require.Equal(t, "two", answer)
		require.Equal(t, "198.51.100.1:1900", from)
	}
	require.NoError(t, w.Unpublish("e1"))
	w.publish(t, "s1", target("e2", 3), "1900:1900/udp")
	answer, _ := shout("198.51.100.255:1900")
	require.Equal(t, "three", answer, "the proxy follows the gateway")
}

// TestClientKeepsSending has a client keep one socket while the port goes from
// one container to another.
func TestClientKeepsSending(t *testing.T) {
	w := newTown(t)
	say(t, w.c2, 53, "two")
	say(t, w.c3, 53, "three")
	clients := []struct {
		name string
		from place
		to   string
	}{
		{"neighbour", w.neighbour, "198.51.100.1:53"},
		{"neighbour, IPv6", w.neighbour, "[2001:db8:1::1]:53"},
		{"host", here{}, "127.0.0.1:53"},
		{"host, by its address", here{}, "198.51.100.1:53"},
		{"host, by proxy", here{}, "[::1]:53"},
	}
	for _, cl := range clients {
		t.Run(cl.name, func(t *testing.T) {
			var c net.Conn
			require.NoError(t, cl.from.Do(func() (err error) { c, err = net.Dial("udp", cl.to); return err }))
			t.Cleanup(func() {
				assert.NoError(t, c.Close())
				assert.NoError(t, errors.Join(w.Release("s1"), w.Release("s2")))
			})
			hears := func(word string) func() bool {
				return func() bool {
					got, _ := question(c, 100*time.Millisecond)
					return got == word
				}
			}
			w.publish(t, "s1", target("e1", 2), "53:53/udp")
			require.Eventually(t, hears("two"), answerWait, time.Millisecond)

			// Moved with a pause in which the client goes on.
			require.NoError(t, w.Release("s1"))
			for range 3 {
				_, err := question(c, 20*time.Millisecond)
				require.Error(t, err, "nobody publishes the port")
			}
			w.publish(t, "s2", target("e2", 3), "53:53/udp")
			require.Eventually(t, hears("three"), answerWait, time.Millisecond)

			// Held, but not published, then back.
			require.NoError(t, w.Unpublish("e2"))
			_, err := question(c, 20*time.Millisecond)
			require.Error(t, err)
			w.publish(t, "s2", target("e1", 2), "53:53/udp")
			require.Eventually(t, hears("two"), answerWait, time.Millisecond)

			// Moved at once.
			w.publish(t, "s2", target("e2", 3), "53:53/udp")
			require.Eventually(t, hears("three"), answerWait, time.Millisecond)
		})
	}
}

// TestConnectedClientFollows has a client on the host that dialled while the port
// was published keep its socket while the port goes from container to container.
func TestConnectedClientFollows(t *testing.T) {
	w := newTown(t)
	say(t, w.c2, 53, "two")
	say(t, w.c3, 53, "three")
	both := func(t portmap.Target) portmap.Target { return t }
	tests := []struct {
		name, to string
		of       func(portmap.Target) portmap.Target
		local    string // with hooks
		spec     string
	}{
		{"::1", "[::1]:53", both, "fd20::1", "53:53/udp"},
		{"::1, IPv4 alone", "[::1]:53", only4, "127.0.0.1", "53:53/udp"},
		{"::1, IPv6 alone", "[::1]:53", only6, "fd20::1", "53:53/udp"},
		{"::1 published by itself", "[::1]:53", both, "::1", "[::1]:53:53/udp"},
		{"an address of the host", "[2001:db8:1::1]:53", both, "2001:db8:1::1", "53:53/udp"},
		{"an address of the host, IPv4 alone", "[2001:db8:1::1]:53", only4, "127.0.0.1", "53:53/udp"},
		{"all IPv6 addresses", "[::1]:53", both, "fd20::1", "[::]:53:53/udp"},
		{"all IPv6 addresses, IPv4 alone", "[::1]:53", only4, "::1", "[::]:53:53/udp"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Cleanup(func() { assert.NoError(t, errors.Join(w.Release("s1"), w.Release("s2"))) })
			w.publish(t, "s1", tt.of(target("e1", 2)), tt.spec)
			c, err := net.Dial("udp", tt.to)
			require.NoError(t, err)
			defer c.Close()
			if w.hooks != nil {
				local, _, _ := net.SplitHostPort(c.LocalAddr().String())
				require.Equal(t, tt.local, local)
			}
			require.Equal(t, tt.to, c.RemoteAddr().String())
			hears := func(word string) func() bool {
				return func() bool {
					got, _ := question(c, 100*time.Millisecond)
					return got == word
				}
			}
			require.Eventually(t, hears("two"), answerWait, time.Millisecond)
			require.NoError(t, w.Release("s1"))
			for range 3 {
				_, err := question(c, 20*time.Millisecond)
				require.Error(t, err, "nobody publishes the port")
			}
			w.publish(t, "s2", tt.of(target("e2", 3)), tt.spec)
			require.Eventually(t, hears("three"), answerWait, time.Millisecond)
			w.publish(t, "s2", tt.of(target("e1", 2)), tt.spec)
			require.Eventually(t, hears("two"), answerWait, time.Millisecond)
		})
	}
}

// TestConnectedClientOutlivesTheDaemon has the kernel carry a client of [::1] on
// when proxy and hooks are gone.
func TestConnectedClientOutlivesTheDaemon(t *testing.T) {
	w := newTown(t)
	if w.hooks == nil {
		t.Skip("this host has no hooks, or they are off: it is the proxy's client")
	}
	say(t, w.c2, 53, "two")
	var clients []net.Conn
	for _, of := range []portmap.Target{only4(target("e1", 2)), target("e1", 2)} {
		w.publish(t, "s1", of, "53:53/udp")
		c, err := net.Dial("udp", "[::1]:53")
		require.NoError(t, err)
		defer c.Close()
		clients = append(clients, c)
	}
	require.NoError(t, w.Close())
	require.NoError(t, w.hooks.(io.Closer).Close())
	for _, c := range clients {
		got, err := question(c, answerWait)
		require.NoError(t, err, c.LocalAddr())
		require.Equal(t, "two", got)
	}
}

// entry is the conntrack entry of a client's socket.
func entry(t *testing.T, c net.Conn) (found []*netlink.ConntrackFlow) {
	t.Helper()
	local, remote := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String())
	family := netlink.InetFamily(unix.AF_INET)
	if local.Addr().Is6() {
		family = unix.AF_INET6
	}
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
	require.NoError(t, err)
	for _, f := range flows {
		if f.Forward.SrcPort == local.Port() && f.Forward.DstPort == remote.Port() && f.Forward.SrcIP.Equal(local.Addr().AsSlice()) {
			found = append(found, f)
		}
	}
	return found
}

// TestHealthyFlowsStay looks at the packet counts of conntrack entries, which
// start anew where an entry was deleted.
func TestHealthyFlowsStay(t *testing.T) {
	w := newTown(t)
	say(t, w.c2, 53, "two")
	say(t, w.c2, 80, "two")
	say(t, w.neighbour, 53, "resolver")
	dial := func(from place, to string) net.Conn {
		var c net.Conn
		require.NoError(t, from.Do(func() (err error) { c, err = net.Dial("udp", to); return err }))
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	specs := []string{"53:53/udp", "127.0.0.1:54:53/udp", "5000-5001:80-81/udp"}
	w.publish(t, "s1", target("e1", 2), specs...)
	flows := map[net.Conn]string{
		dial(w.neighbour, "198.51.100.1:53"):    "two",
		dial(w.neighbour, "[2001:db8:1::1]:53"): "two",
		dial(w.neighbour, "198.51.100.1:5000"):  "two",
		dial(here{}, "127.0.0.1:53"):            "two",
		dial(here{}, "127.0.0.1:54"):            "two",
		dial(here{}, "198.51.100.1:53"):         "two",
		dial(here{}, "[::1]:53"):                "two",
		dial(here{}, "[2001:db8:1::1]:5000"):    "two",
		dial(w.c3, "198.51.100.1:53"):           "two",
		dial(here{}, "198.51.100.2:53"):         "resolver",
		dial(here{}, "[2001:db8:1::2]:53"):      "resolver",
		dial(here{}, "172.20.0.2:53"):           "two",
		dial(w.c3, "172.20.0.2:53"):             "two",
	}
	sent := uint64(0)
	requireAlive := func(when string) {
		t.Helper()
		sent++
		for c, word := range flows {
			name := fmt.Sprintf("%s: %s to %s", when, c.LocalAddr(), c.RemoteAddr())
			got, err := question(c, answerWait)
			require.NoError(t, err, name)
			require.Equal(t, word, got, name)
			if strings.HasPrefix(c.RemoteAddr().String(), "172.20.0.2") && strings.HasPrefix(c.LocalAddr().String(), "172.20.0.3") {
				continue // bridged: conntrack need not see it
			}
			found := entry(t, c)
			require.Len(t, found, 1, name)
			require.Equal(t, sent, found[0].Forward.Packets, name)
		}
	}
	requireAlive("at first")
	w.publish(t, "s1", target("e1", 2), specs...)
	requireAlive("published again")
	w.publish(t, "s2", target("e3", 3), "8080:80/udp")
	requireAlive("another endpoint came")
	require.NoError(t, w.Release("s2"))
	requireAlive("another endpoint went")

	// The daemon restarts.
	require.NoError(t, w.Close())
	restarted := portmap.NewPublisher(portmap.PublisherConfig{Mapper: w.mapper, Hooks: w.hooks})
	t.Cleanup(func() { assert.NoError(t, restarted.Close()) })
	ms, err := w.mapper.List()
	require.NoError(t, err)
	require.Len(t, ms, 1)
	pub := portmap.Publication{Target: target("e1", 2), Mappings: ms[0].Mappings}
	require.NoError(t, restarted.Restore([]portmap.Network{rigNet}, []portmap.Run{{Sandbox: "s1", Publication: pub}}, nil))
	requireAlive("the daemon was restarted")

	require.NoError(t, restarted.Release("s1"))
	for c, word := range flows {
		if word == "resolver" {
			got, err := question(c, answerWait)
			require.NoError(t, err)
			require.Equal(t, word, got)
			require.Equal(t, sent+1, entry(t, c)[0].Forward.Packets, "the host's own questions to another host")
		}
	}
}

// TestRestoreForgetsTheDead: a client that never pauses is cut off from a container
// that ended while no daemon was there, whose address is the next one's.
func TestRestoreForgetsTheDead(t *testing.T) {
	w := newTown(t)
	say(t, w.c2, 53, "two")
	w.publish(t, "s1", target("e1", 2), "5300:53/udp")
	w.publish(t, "s2", target("e2", 2), "5400:53/udp")
	var stale, alive net.Conn
	require.NoError(t, w.neighbour.Do(func() (err error) { stale, err = net.Dial("udp", "198.51.100.1:5300"); return err }))
	defer stale.Close()
	require.NoError(t, w.neighbour.Do(func() (err error) { alive, err = net.Dial("udp", "198.51.100.1:5400"); return err }))
	defer alive.Close()
	for _, c := range []net.Conn{stale, alive} {
		got, err := question(c, answerWait)
		require.NoError(t, err)
		require.Equal(t, "two", got)
	}
	require.NoError(t, w.Close())
	restarted := portmap.NewPublisher(portmap.PublisherConfig{Mapper: w.mapper, Hooks: w.hooks})
	t.Cleanup(func() { assert.NoError(t, restarted.Close()) })
	run := portmap.Run{Sandbox: "s2", Publication: portmap.Publication{Target: target("e2", 2), Mappings: mappings(t, "5400->53/udp")}}
	require.NoError(t, restarted.Restore([]portmap.Network{rigNet}, []portmap.Run{run}, mappings(t, "5300->53/udp")))
	require.Empty(t, entry(t, stale))
	_, err := question(stale, 100*time.Millisecond)
	require.Error(t, err, "nobody publishes it")
	got, err := question(alive, answerWait)
	require.NoError(t, err)
	require.Equal(t, "two", got)
	require.NoError(t, restarted.Release("s2"))
}

// TestNothingBeforePublished connects to a port that is reserved and not yet
// mapped: while record runs.
func TestNothingBeforePublished(t *testing.T) {
	w := newTown(t)
	say(t, w.c2, 80, "two")
	_, err := w.Publish("s1", target("e1", 2), bindings(t, "8080:80", "8080:80/udp"), func(ms []portmap.Mapping) (func() error, error) {
		for _, network := range []string{"udp", "tcp"} {
			for _, to := range []string{"127.0.0.1:8080", "[::1]:8080"} {
				_, err := ask(here{}, network, to, 100*time.Millisecond)
				var e net.Error
				assert.ErrorAs(t, err, &e, "%s %s", network, to)
				assert.True(t, e != nil && e.Timeout(), "%s %s: %v", network, to, err)
			}
		}
		return recordNothing(ms)
	})
	require.NoError(t, err)
	requireSays(t, here{}, "two", "127.0.0.1:8080", "[::1]:8080")
}

// TestNeighbouringPorts has ports of several endpoints side by side, which share
// the ends of their intervals.
func TestNeighbouringPorts(t *testing.T) {
	w := newTown(t)
	pubs := []portmap.Publication{
		{Target: target("e1", 2), Mappings: []portmap.Mapping{{Proto: portmap.UDP, HostPort: 1000, HostPortEnd: 1009, Port: 1000}}},
		{Target: target("e2", 3), Mappings: []portmap.Mapping{{Proto: portmap.UDP, HostPort: 1010, HostPortEnd: 1010, Port: 1010}}},
		{Target: target("e3", 4), Mappings: []portmap.Mapping{{Proto: portmap.UDP, HostPort: 1011, HostPortEnd: 1020, Port: 1011}}},
	}
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {0, 2, 1}} {
		for _, i := range order {
			require.NoError(t, w.mapper.Map(pubs[i]))
		}
		for n, i := range order {
			listed, err := w.mapper.List()
			require.NoError(t, err)
			require.Len(t, listed, 3-n)
			for _, p := range listed {
				j := slices.IndexFunc(pubs, func(o portmap.Publication) bool { return o.Endpoint == p.Endpoint })
				require.Equal(t, texts(pubs[j].Mappings), texts(p.Mappings))
			}
			require.NoError(t, w.mapper.Unmap(pubs[i].Endpoint))
		}
	}
}
