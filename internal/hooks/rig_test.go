package hooks

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/netnstest"
)

// The host is the tests' own namespace. A container listens, and so does the
// host, on every port that is published or might be: what answers says how far
// a client came.
const (
	hostPort      = 4053
	containerPort = 53
	answerWait    = 20 * time.Second
)

var (
	loopback6  = netip.IPv6Loopback()
	other6     = netip.MustParseAddr("fd89::1") // another address of the host
	bridge6    = netip.MustParseAddr("fd88::1") // the host's in the container's network
	container4 = netip.MustParseAddr("10.88.0.2")
	container6 = netip.MustParseAddr("fd88::2")
	wildcard   = netip.IPv6Unspecified()
)

// mapped is an IPv4 address in IPv6.
func mapped(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }

type place interface{ Do(f func() error) error }

type here struct{}

func (here) Do(f func() error) error { return f() }

// rig is the host and a container.
type rig struct {
	*Hooks
	cgroup    string
	container *netnstest.Host
}

func newRig(t testing.TB) *rig {
	t.Helper()
	netnstest.Sysctl(t, "ipv6/conf/default/accept_dad", "0")
	r := &rig{cgroup: testCgroup(t), container: netnstest.NewHost(t)}
	require.NoError(t, r.container.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644)
	}))
	r.container.Connect("veth0", "eth0", "", []string{"10.88.0.1/24", "fd88::1/64"}, []string{"10.88.0.2/24", "fd88::2/64"})
	r.container.Route("10.88.0.1")
	r.container.Route("fd88::1")
	addAddress(t, other6.String()+"/128")
	return r
}

// attach opens the hooks for a test; it says so where this host cannot.
func (r *rig) attach(t testing.TB) {
	t.Helper()
	h, err := Open(r.cgroup, nil)
	_, ours := errors.AsType[*ebpf.VerifierError](err)
	require.False(t, ours, "a fault of the programs: %+v", err)
	if err != nil {
		t.Skip("this host cannot attach the programs, which Open says: ", err)
	}
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	r.Hooks = h
}

// serveContainer has the container answer, and be what netfilter leads to, too,
// as the rig has none: hence the host port.
func (r *rig) serveContainer(t testing.TB) {
	t.Helper()
	serve(t, r.container, netip.AddrPortFrom(wildcard, containerPort), "container")
	serve(t, r.container, netip.AddrPortFrom(wildcard, hostPort), "container")
}

// publish is Set for both protocols and one port.
func (r *rig) publish(t testing.TB, host netip.Addr, to netip.Addr) {
	t.Helper()
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		require.NoError(t, r.Set(proto, host, hostPort, hostPort, netip.AddrPortFrom(to, containerPort), to))
	}
}

func addAddress(t testing.TB, prefix string) (remove func()) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	a, err := netlink.ParseAddr(prefix)
	require.NoError(t, err)
	a.Flags |= unix.IFA_F_NODAD
	require.NoError(t, netlink.AddrAdd(lo, a))
	t.Cleanup(func() { _ = netlink.AddrDel(lo, a) })
	return func() { require.NoError(t, netlink.AddrDel(lo, a)) }
}

// serve answers every question over TCP and UDP with a word and who asks.
func serve(t testing.TB, at place, addr netip.AddrPort, word string) {
	t.Helper()
	require.NoError(t, at.Do(func() error {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		if err != nil {
			return err
		}
		ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		if err != nil {
			return errors.Join(err, c.Close())
		}
		ended := make(chan struct{}, 2)
		t.Cleanup(func() {
			_, _ = c.Close(), ln.Close()
			<-ended
			<-ended
		})
		go answerUDP(c, word, ended)
		go answerTCP(ln, word, ended)
		return nil
	}))
}

func answerUDP(c *net.UDPConn, word string, ended chan<- struct{}) {
	defer func() { ended <- struct{}{} }()
	// An answer from a wildcard socket has to leave with the address that was
	// asked, as every decent server's.
	raw, _ := c.SyscallConn()
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	})
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for {
		_, n, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _, _ = c.WriteMsgUDPAddrPort([]byte(word+" "+from.Addr().Unmap().String()), oob[:n], from)
		}
	}
}

func answerTCP(ln *net.TCPListener, word string, ended chan<- struct{}) {
	defer func() { ended <- struct{}{} }()
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 2048)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
				from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
				_, _ = c.Write([]byte(word + " " + from.Addr().Unmap().String()))
			}
		}()
	}
}

// client is a way to use a socket.
type client struct {
	name        string
	proto       int
	unconnected bool
	bind        netip.Addr
	device      string
	pktinfo     netip.Addr // source of each datagram
	v6only      bool
}

// asked is an open socket that has had an answer.
type asked struct {
	fd         int
	word       string         // who answered
	seen       string         // whom it took us for
	from, peer netip.AddrPort // recvfrom(2) of a datagram, getpeername(2)
}

// ask sends a question. The socket is open until the test ends.
func (c client) ask(t testing.TB, at place, to netip.AddrPort) (a asked, err error) {
	t.Helper()
	err = at.Do(func() error {
		a, err = c.dial(t, to)
		if err != nil {
			return err
		}
		return c.exchange(&a, to)
	})
	return a, err
}

func (c client) dial(t testing.TB, to netip.AddrPort) (a asked, err error) {
	kind := unix.SOCK_STREAM
	if c.proto == unix.IPPROTO_UDP {
		kind = unix.SOCK_DGRAM
	}
	if a.fd, err = unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0); err != nil {
		return a, err
	}
	t.Cleanup(func() { _ = unix.Close(a.fd) })
	wait := unix.NsecToTimeval(answerWait.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(a.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptTimeval(a.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait))
	if c.v6only {
		err = errors.Join(err, unix.SetsockoptInt(a.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
	}
	if c.device != "" {
		err = errors.Join(err, unix.BindToDevice(a.fd, c.device))
	}
	if c.bind.IsValid() {
		err = errors.Join(err, unix.Bind(a.fd, &unix.SockaddrInet6{Addr: c.bind.As16()}))
	}
	if !c.unconnected {
		if e := connect(a.fd, to); e != nil {
			err = errors.Join(err, fmt.Errorf("connect: %w", e))
		}
	}
	return a, err
}

func (c client) exchange(a *asked, to netip.AddrPort) (err error) {
	var n int
	var from unix.Sockaddr
	buf := make([]byte, 99)
	err = again(func() (err error) {
		switch {
		case c.pktinfo.IsValid():
			return unix.Sendmsg(a.fd, []byte("?"), unix.PktInfo6(&unix.Inet6Pktinfo{Addr: c.pktinfo.As16()}), sockaddr(to), 0)
		case c.unconnected:
			return unix.Sendto(a.fd, []byte("?"), 0, sockaddr(to))
		}
		_, err = unix.Write(a.fd, []byte("?"))
		return err
	})
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	err = again(func() (err error) {
		n, from, err = unix.Recvfrom(a.fd, buf, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	a.word, a.seen, _ = strings.Cut(string(buf[:n]), " ")
	if s, ok := from.(*unix.SockaddrInet6); ok {
		a.from = netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port))
	}
	if !c.unconnected {
		peer, err := unix.Getpeername(a.fd)
		if err != nil {
			return fmt.Errorf("getpeername: %w", err)
		}
		s := peer.(*unix.SockaddrInet6)
		a.peer = netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port))
	}
	return nil
}

// connect goes on where a signal has interrupted it.
func connect(fd int, to netip.AddrPort) error {
	err := unix.Connect(fd, sockaddr(to))
	if !errors.Is(err, unix.EINTR) {
		return err
	}
	for {
		err := unix.Connect(fd, sockaddr(to))
		switch {
		case errors.Is(err, unix.EISCONN):
			return nil
		case !errors.Is(err, unix.EALREADY) && !errors.Is(err, unix.EINTR):
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

func sockaddr(to netip.AddrPort) *unix.SockaddrInet6 {
	s := &unix.SockaddrInet6{Addr: to.Addr().WithZone("").As16(), Port: int(to.Port())}
	if zone := to.Addr().Zone(); zone != "" {
		if l, err := netlink.LinkByName(zone); err == nil {
			s.ZoneId = uint32(l.Attrs().Index)
		}
	}
	return s
}

// again is a system call that signals may interrupt: the Go runtime sends some,
// and one with a timeout is not restarted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
