package hooks

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const (
	tcp = unix.IPPROTO_TCP
	udp = unix.IPPROTO_UDP
)

// The usual clients, and how far they come where the container has IPv6, and
// where it has IPv4 alone.
var clients = []struct {
	client
	by6, by4 string
}{
	{client{name: "TCP", proto: tcp}, "container", "container"},
	{client{name: "TCP, IPv6 only", proto: tcp, v6only: true}, "container", "proxy"},
	{client{name: "TCP bound to ::1", proto: tcp, bind: loopback6}, "proxy", "proxy"},
	{client{name: "TCP bound to another address", proto: tcp, bind: other6}, "proxy", "proxy"},
	{client{name: "TCP bound to the wildcard", proto: tcp, bind: wildcard}, "container", "container"},
	{client{name: "TCP bound to an interface", proto: tcp, device: "lo"}, "proxy", "proxy"},
	{client{name: "UDP connected", proto: udp}, "container", "container"},
	{client{name: "UDP connected, IPv6 only", proto: udp, v6only: true}, "container", "proxy"},
	{client{name: "UDP connected, bound to ::1", proto: udp, bind: loopback6}, "proxy", "proxy"},
	{client{name: "UDP connected, bound to an interface", proto: udp, device: "lo"}, "proxy", "proxy"},
	{client{name: "UDP unconnected", proto: udp, unconnected: true}, "container", "proxy"},
	{client{name: "UDP unconnected, IPv6 only", proto: udp, unconnected: true, v6only: true}, "container", "proxy"},
	{client{name: "UDP unconnected, bound to ::1", proto: udp, unconnected: true, bind: loopback6}, "proxy", "proxy"},
	{client{name: "UDP unconnected, bound to the wildcard", proto: udp, unconnected: true, bind: wildcard}, "container", "proxy"},
	{client{name: "UDP unconnected, bound to an interface", proto: udp, unconnected: true, device: "lo"}, "proxy", "proxy"},
	{client{name: "UDP unconnected, a source for each datagram", proto: udp, unconnected: true, pktinfo: loopback6}, "proxy", "proxy"},
}

func TestClients(t *testing.T) {
	r := newRig(t)
	r.serveContainer(t)
	serve(t, here{}, netip.AddrPortFrom(wildcard, hostPort), "proxy")
	for _, tt := range clients {
		t.Run("without hooks/"+tt.name, func(t *testing.T) {
			got, err := tt.ask(t, here{}, netip.AddrPortFrom(loopback6, hostPort))
			require.NoError(t, err)
			assert.Equal(t, "proxy", got.word)
		})
	}
	r.attach(t)
	for _, backend := range []netip.Addr{container6, container4} {
		r.publish(t, wildcard, backend)
		for _, dialled := range []netip.Addr{loopback6, bridge6, other6} {
			for _, tt := range clients {
				if dialled == bridge6 && (tt.bind == loopback6 || tt.pktinfo.IsValid() || tt.device != "") {
					continue // an address of another interface than lo: it does not work without hooks either
				}
				t.Run(fmt.Sprintf("%s by %s/%s", backend, dialled, tt.name), func(t *testing.T) {
					to := netip.AddrPortFrom(dialled, hostPort)
					got, err := tt.ask(t, here{}, to)
					require.NoError(t, err)
					want := tt.by6
					if backend.Is4() {
						want = tt.by4
					} else if tt.proto == udp && !tt.unconnected && dialled != loopback6 {
						want = "proxy" // in life it is netfilter's
					}
					assert.Equal(t, want, got.word)
					if tt.proto == udp {
						assert.Equal(t, to, got.from, "recvfrom")
					}
					if !tt.unconnected {
						assert.Equal(t, to, got.peer, "getpeername")
					}
					switch {
					case want == "proxy":
					case backend.Is4():
						assert.Equal(t, "10.88.0.1", got.seen)
					default:
						assert.Equal(t, "fd88::1", got.seen)
					}
				})
			}
		}
	}
}

func TestTheUnspecifiedAddressMeansThisHost(t *testing.T) {
	r := newRig(t)
	r.serveContainer(t)
	r.attach(t)
	r.publish(t, wildcard, container6)
	for _, c := range []client{{proto: tcp}, {proto: udp}, {proto: udp, unconnected: true}} {
		got, err := c.ask(t, here{}, netip.AddrPortFrom(wildcard, hostPort))
		require.NoError(t, err, "%+v", c)
		assert.Equal(t, "container", got.word)
		if !c.unconnected {
			assert.Equal(t, netip.AddrPortFrom(loopback6, hostPort), got.peer)
		}
	}
}

// Go's own client, as programs use it: "tcp6" and "udp6" take no IPv4. Multipath
// TCP is left alone, as its sockets cannot be told what they dialled.
func TestGoClients(t *testing.T) {
	r := newRig(t)
	r.serveContainer(t)
	serve(t, here{}, netip.AddrPortFrom(wildcard, hostPort), "proxy")
	r.attach(t)
	for _, backend := range []netip.Addr{container6, container4} {
		r.publish(t, wildcard, backend)
		for _, multipath := range []bool{false, true} {
			for _, network := range []string{"tcp", "tcp6", "udp", "udp6"} {
				t.Run(fmt.Sprint(backend, " ", network, " multipath ", multipath), func(t *testing.T) {
					d := net.Dialer{Timeout: answerWait}
					d.SetMultipathTCP(multipath)
					c, err := d.Dial(network, "[::1]:4053")
					require.NoError(t, err)
					defer c.Close()
					require.NoError(t, c.SetDeadline(time.Now().Add(answerWait)))
					_, err = c.Write([]byte("?"))
					require.NoError(t, err)
					buf := make([]byte, 99)
					n, err := c.Read(buf)
					require.NoError(t, err)
					want := "container"
					if network[:3] == "tcp" && multipath || len(network) == 4 && backend.Is4() {
						want = "proxy"
					}
					assert.Contains(t, string(buf[:n]), want+" ")
					assert.Equal(t, "[::1]:4053", c.RemoteAddr().String())
				})
			}
		}
	}
}

func TestWhatIsLeftAlone(t *testing.T) {
	r := newRig(t)
	serve(t, r.container, netip.AddrPortFrom(wildcard, containerPort), "container")
	serve(t, r.container, netip.AddrPortFrom(wildcard, hostPort), "own")
	serve(t, here{}, netip.AddrPortFrom(wildcard, hostPort), "proxy")
	serve(t, here{}, netip.AddrPortFrom(wildcard, hostPort+1), "program")
	r.attach(t)
	r.publish(t, wildcard, container6)
	linkLocal := linkLocalOf(t, "veth0")
	tests := []struct {
		name string
		from place
		to   string
		want string
	}{
		{"a container's own ::1", r.container, "[::1]:4053", "own"},
		{"a container's own address", r.container, "[fd88::2]:4053", "own"},
		{"an address that is not the host's", here{}, "[fd88::2]:4053", "own"},
		{"a port that is not published", here{}, "[::1]:4054", "program"},
		{"IPv4", here{}, "[::ffff:127.0.0.1]:4053", "proxy"},
		{"link-local", here{}, "[" + linkLocal + "%veth0]:4053", "proxy"},
	}
	for _, tt := range tests {
		for _, c := range []client{{name: "TCP", proto: tcp}, {name: "UDP", proto: udp}, {name: "UDP unconnected", proto: udp, unconnected: true}} {
			t.Run(tt.name+"/"+c.name, func(t *testing.T) {
				got, err := c.ask(t, tt.from, netip.MustParseAddrPort(tt.to))
				require.NoError(t, err)
				assert.Equal(t, tt.want, got.word)
			})
		}
	}
}

func linkLocalOf(t *testing.T, name string) string {
	t.Helper()
	l, err := netlink.LinkByName(name)
	require.NoError(t, err)
	var found string
	require.Eventually(t, func() bool {
		list, err := netlink.AddrList(l, netlink.FAMILY_V6)
		require.NoError(t, err)
		i := slices.IndexFunc(list, func(a netlink.Addr) bool {
			return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0
		})
		if i >= 0 {
			found = list[i].IP.String()
		}
		return i >= 0
	}, answerWait, 10*time.Millisecond)
	return found
}

// One host address is published: the others reach whoever listens there.
func TestOneHostAddress(t *testing.T) {
	r := newRig(t)
	r.serveContainer(t)
	serve(t, here{}, netip.AddrPortFrom(wildcard, hostPort), "program")
	r.attach(t)
	r.publish(t, loopback6, container6)
	for to, want := range map[netip.Addr]string{loopback6: "container", other6: "program"} {
		got, err := client{proto: tcp}.ask(t, here{}, netip.AddrPortFrom(to, hostPort))
		require.NoError(t, err)
		assert.Equal(t, want, got.word, to)
	}
}

func TestAddressesComeAndGo(t *testing.T) {
	r := newRig(t)
	r.attach(t)
	added := netip.MustParseAddr("fd8a::1")
	here := func() bool {
		var one uint8
		return r.objs.Locals.Lookup(address(added), &one) == nil
	}
	require.False(t, here())
	remove := addAddress(t, added.String()+"/128")
	require.Eventually(t, here, answerWait, time.Millisecond)
	remove()
	require.Eventually(t, func() bool { return !here() }, answerWait, time.Millisecond)
}

func TestRangeKeepsItsOrder(t *testing.T) {
	r := newRig(t)
	for _, p := range []uint16{20001, 25000, 30000} {
		serve(t, r.container, netip.AddrPortFrom(wildcard, p), fmt.Sprint("container-", p))
	}
	for _, p := range []uint16{10000, 20000} {
		serve(t, here{}, netip.AddrPortFrom(wildcard, p), fmt.Sprint("program-", p))
	}
	r.attach(t)
	require.NoError(t, r.Set(udp, wildcard, 10001, 20000, netip.AddrPortFrom(container6, 20001), netip.Addr{}))
	ask := func(port uint16) string {
		t.Helper()
		got, err := client{proto: udp, unconnected: true}.ask(t, here{}, netip.AddrPortFrom(loopback6, port))
		require.NoError(t, err)
		return got.word
	}
	assert.Equal(t, "program-10000", ask(10000))
	assert.Equal(t, "container-20001", ask(10001))
	assert.Equal(t, "container-25000", ask(15000))
	assert.Equal(t, "container-30000", ask(20000))
	require.NoError(t, r.Delete(udp, wildcard, 10001, 20000))
	assert.Equal(t, "program-20000", ask(20000))
	require.NoError(t, r.Delete(udp, wildcard, 10001, 20000), "again")
	var key programsRangeKey
	require.ErrorIs(t, r.objs.Ranges.NextKey(nil, &key), ebpf.ErrKeyNotExist, "nothing is left in the map")
}

// A socket that sends to many, as resolvers and media servers do, gets each
// answer from where it has sent to.
func TestOneSocketManyPorts(t *testing.T) {
	r := newRig(t)
	for p := range uint16(5) {
		serve(t, r.container, netip.AddrPortFrom(wildcard, 6000+p), fmt.Sprint("container-", p))
	}
	r.attach(t)
	require.NoError(t, r.Set(udp, wildcard, 7000, 7004, netip.AddrPortFrom(container6, 6000), netip.Addr{}))
	c := client{proto: udp, unconnected: true}
	a, err := c.dial(t, netip.AddrPort{})
	require.NoError(t, err)
	for range 3 {
		for p := range uint16(5) {
			require.NoError(t, again(func() error {
				return unix.Sendto(a.fd, []byte("?"), 0, sockaddr(netip.AddrPortFrom(loopback6, 7000+p)))
			}))
		}
		for range 5 {
			buf := make([]byte, 99)
			var n int
			var from unix.Sockaddr
			require.NoError(t, again(func() (err error) {
				n, from, err = unix.Recvfrom(a.fd, buf, 0)
				return err
			}))
			s := from.(*unix.SockaddrInet6)
			assert.Equal(t, loopback6.As16(), s.Addr)
			assert.Contains(t, string(buf[:n]), fmt.Sprintf("container-%d ", s.Port-7000))
		}
	}
}

// A connected UDP socket may also name the address with each datagram.
func TestConnectedSocketThatNamesTheAddress(t *testing.T) {
	r := newRig(t)
	r.serveContainer(t)
	r.attach(t)
	r.publish(t, wildcard, container6)
	to := netip.AddrPortFrom(loopback6, hostPort)
	a, err := client{proto: udp}.ask(t, here{}, to)
	require.NoError(t, err)
	require.NoError(t, client{proto: udp, unconnected: true}.exchange(&a, to))
	assert.Equal(t, "container", a.word)
	assert.Equal(t, to, a.from)
}

// What a socket is connected to next is not what it was connected to before.
func TestConnectedAnew(t *testing.T) {
	r := newRig(t)
	r.serveContainer(t)
	serve(t, here{}, netip.AddrPortFrom(wildcard, hostPort), "proxy")
	serve(t, here{}, netip.AddrPortFrom(wildcard, hostPort+1), "program")
	r.attach(t)
	r.publish(t, wildcard, container6)
	published, program := netip.AddrPortFrom(loopback6, hostPort), netip.AddrPortFrom(loopback6, hostPort+1)
	direct := netip.AddrPortFrom(container6, containerPort)
	c := client{proto: udp}
	t.Run("published, then not", func(t *testing.T) {
		a, err := c.ask(t, here{}, published)
		require.NoError(t, err)
		for to, want := range map[netip.AddrPort]string{program: "program", direct: "container"} {
			require.NoError(t, unix.Connect(a.fd, sockaddr(to)))
			require.NoError(t, c.exchange(&a, to))
			assert.Equal(t, want, a.word)
			assert.Equal(t, to, a.peer)
		}
	})
	t.Run("not published, then so: the source ::1 stays", func(t *testing.T) {
		a, err := c.ask(t, here{}, program)
		require.NoError(t, err)
		require.NoError(t, unix.Connect(a.fd, sockaddr(published)))
		require.NoError(t, c.exchange(&a, published))
		assert.Equal(t, "proxy", a.word)
	})
	t.Run("disconnected in between, IPv4 backend", func(t *testing.T) {
		r.publish(t, wildcard, container4)
		a, err := c.ask(t, here{}, published)
		require.NoError(t, err)
		assert.Equal(t, "container", a.word)
		disconnect(t, a.fd)
		require.NoError(t, unix.Connect(a.fd, sockaddr(program)))
		require.NoError(t, c.exchange(&a, program))
		assert.Equal(t, "program", a.word)
	})
}

func disconnect(t *testing.T, fd int) {
	t.Helper()
	// Package unix has no name for it: connect(2) to AF_UNSPEC.
	var unspec [28]byte
	_, _, errno := rawConnect(fd, &unspec)
	require.Zero(t, errno)
}

func TestPortMoves(t *testing.T) {
	r := newRig(t)
	serve(t, r.container, netip.AddrPortFrom(wildcard, containerPort), "first")
	serve(t, r.container, netip.AddrPortFrom(wildcard, containerPort+1), "second")
	r.attach(t)
	r.publish(t, wildcard, container6)
	to := netip.AddrPortFrom(loopback6, hostPort)
	stream, datagrams := client{proto: tcp}, client{proto: udp, unconnected: true}
	a, err := stream.ask(t, here{}, to)
	require.NoError(t, err)
	require.Equal(t, "first", a.word)
	b, err := datagrams.ask(t, here{}, to)
	require.NoError(t, err)
	require.Equal(t, "first", b.word)

	for _, proto := range []uint8{tcp, udp} {
		require.NoError(t, r.Set(proto, wildcard, hostPort, hostPort, netip.AddrPortFrom(container6, containerPort+1), netip.Addr{}))
	}
	require.NoError(t, stream.exchange(&a, to), "a connection that stands goes on")
	assert.Equal(t, "first", a.word)
	require.NoError(t, datagrams.exchange(&b, to))
	assert.Equal(t, "second", b.word)
	assert.Equal(t, to, b.from)
}

// Without an address at which netfilter translates, a connected UDP socket has
// the proxy alone to follow a port that moves. With one in IPv6, ::1 needs it and
// the host's other addresses do not.
func TestConnectedUDPGoesByWhatFollows(t *testing.T) {
	r := newRig(t)
	r.serveContainer(t)
	serve(t, here{}, netip.AddrPortFrom(wildcard, hostPort), "proxy")
	r.attach(t)
	for _, tt := range []struct {
		via                      netip.Addr
		byLoopback, byItsAddress string
	}{
		{netip.Addr{}, "proxy", "proxy"},
		{container6, "container", "proxy"},
		{container4, "container", "container"},
	} {
		require.NoError(t, r.Set(udp, wildcard, hostPort, hostPort, netip.AddrPortFrom(container6, containerPort), tt.via))
		for dialled, want := range map[netip.Addr]string{loopback6: tt.byLoopback, other6: tt.byItsAddress} {
			got, err := client{proto: udp}.ask(t, here{}, netip.AddrPortFrom(dialled, hostPort))
			require.NoError(t, err)
			assert.Equal(t, want, got.word, "%s via %s", dialled, tt.via)
			assert.Equal(t, netip.AddrPortFrom(dialled, hostPort), got.from)
		}
	}
}

func TestCloseDetaches(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	r := newRig(t)
	r.attach(t)
	r.publish(t, wildcard, container6)
	var ids []ebpf.ProgramID
	for _, p := range r.programs() {
		info, err := p.Info()
		require.NoError(t, err)
		id, ok := info.ID()
		require.True(t, ok)
		require.Contains(t, attached(t, r.cgroup), id, p.attach)
		ids = append(ids, id)
	}
	_, err := client{proto: tcp}.ask(t, here{}, netip.AddrPortFrom(loopback6, hostPort))
	require.ErrorIs(t, err, unix.ECONNREFUSED, "the container's refusal")
	require.NoError(t, r.Close())
	require.NoError(t, r.Close(), "again")
	requireGone(t, r.cgroup, ids)
	require.Error(t, r.Set(tcp, wildcard, 1, 1, netip.AddrPortFrom(container6, 1), netip.Addr{}))
	require.NoError(t, r.Delete(tcp, wildcard, hostPort, hostPort))
}

func TestNothingIsLeftAfterAKill(t *testing.T) {
	r := newRig(t)
	r.serveContainer(t)
	serve(t, here{}, netip.AddrPortFrom(wildcard, hostPort), "proxy")
	r.attach(t)
	require.NoError(t, r.Close())

	cmd, ids := startChild(t, r.cgroup)
	require.Subset(t, attached(t, r.cgroup), ids)
	to := netip.AddrPortFrom(loopback6, hostPort)
	open, err := client{proto: tcp}.ask(t, here{}, to)
	require.NoError(t, err)
	require.Equal(t, "container", open.word)

	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	require.Eventually(t, func() bool { return !slices.Contains(attached(t, r.cgroup), ids[0]) }, 10*time.Second, 10*time.Millisecond)
	requireGone(t, r.cgroup, ids)
	got, err := client{proto: tcp}.ask(t, here{}, to)
	require.NoError(t, err)
	assert.Equal(t, "proxy", got.word)
	require.NoError(t, client{proto: tcp}.exchange(&open, to), "a connection that stands goes on")
	assert.Equal(t, "container", open.word)
}

// Two hosts on one kernel, as tests are: each has its own ports.
func TestTwoNetworkNamespaces(t *testing.T) {
	r := newRig(t)
	serve(t, r.container, netip.AddrPortFrom(wildcard, containerPort), "container")
	serve(t, r.container, netip.AddrPortFrom(loopback6, hostPort), "own")
	r.attach(t)
	r.publish(t, wildcard, container6)
	var second *Hooks
	require.NoError(t, r.container.Do(func() (err error) {
		second, err = Open(r.cgroup, nil)
		return err
	}))
	defer second.Close()
	require.NoError(t, second.Set(tcp, wildcard, hostPort+1, hostPort+1, netip.AddrPortFrom(container6, containerPort), netip.Addr{}))
	c := client{proto: tcp}
	for _, tt := range []struct {
		from place
		port uint16
		want string
	}{{here{}, hostPort, "container"}, {r.container, hostPort, "own"}, {r.container, hostPort + 1, "container"}} {
		got, err := c.ask(t, tt.from, netip.AddrPortFrom(loopback6, tt.port))
		require.NoError(t, err)
		assert.Equal(t, tt.want, got.word)
	}
	_, err := c.ask(t, here{}, netip.AddrPortFrom(loopback6, hostPort+1))
	require.ErrorIs(t, err, unix.ECONNREFUSED)
}

func TestOpenSaysWhatIsMissing(t *testing.T) {
	root := testCgroup(t)
	_, err := Open(filepath.Join(t.TempDir(), "none"), nil)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Open(t.TempDir(), nil)
	require.ErrorContains(t, err, "not a cgroup v2 hierarchy")

	below := filepath.Join(root, fmt.Sprint("portolan-test-", os.Getpid()))
	require.NoError(t, os.Mkdir(below, 0o755))
	t.Cleanup(func() { _ = os.Remove(below) })
	_, err = Open(below, nil)
	require.ErrorContains(t, err, "not the root of its hierarchy")

	for name, drop := range map[string][]int{
		"needs CAP_BPF, CAP_PERFMON: ":                {unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_ADMIN},
		"needs CAP_NET_ADMIN: ":                       {unix.CAP_NET_ADMIN},
		"needs CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN: ": {unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN},
	} {
		err := without(t, drop, func() error {
			_, err := Open(root, nil)
			return err
		})
		require.ErrorIs(t, err, unix.EPERM)
		require.ErrorContains(t, err, name)
	}
}

// The systemd unit grants these, and no CAP_SYS_ADMIN.
func TestCapabilitiesThatSuffice(t *testing.T) {
	r := newRig(t)
	r.attach(t)
	require.NoError(t, r.Close())
	var all []int
	for c := range unix.CAP_LAST_CAP + 1 {
		if c != unix.CAP_BPF && c != unix.CAP_PERFMON && c != unix.CAP_NET_ADMIN {
			all = append(all, c)
		}
	}
	require.NoError(t, without(t, all, func() error {
		h, err := Open(r.cgroup, nil)
		if err != nil {
			return err
		}
		return h.Close()
	}))
}

// without runs f on a thread that has dropped capabilities, and ends it.
func without(t *testing.T, drop []int, f func() error) error {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&hdr, &data[0]); err != nil {
			done <- err
			return
		}
		for _, c := range drop {
			data[c/32].Effective &^= 1 << (c % 32)
			data[c/32].Permitted &^= 1 << (c % 32)
		}
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func TestSetRefusesNonsense(t *testing.T) {
	r := newRig(t)
	r.attach(t)
	to := netip.AddrPortFrom(container6, 53)
	require.Error(t, r.Set(udp, netip.IPv4Unspecified(), 53, 53, to, netip.Addr{}))
	require.Error(t, r.Set(udp, netip.Addr{}, 53, 53, to, netip.Addr{}))
	require.Error(t, r.Set(udp, wildcard, 0, 53, to, netip.Addr{}))
	require.Error(t, r.Set(udp, wildcard, 54, 53, to, netip.Addr{}))
	require.Error(t, r.Set(udp, wildcard, 53, 53, netip.AddrPort{}, netip.Addr{}))
}
