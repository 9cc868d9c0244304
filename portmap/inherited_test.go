package portmap_test

import (
	"context"
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
	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
)

// fdStore is an FDStore in memory, whose process ends by next: it has copies, as a
// service manager has. That one such really does is package systemd's own test,
// and that the daemon gets along with it is e2e's.
type fdStore struct {
	t         *testing.T
	inherited []*os.File
	put       map[portmap.StoredSocket]*os.File
	settled   bool
}

func newFDStore(t *testing.T) *fdStore {
	s := &fdStore{t: t, put: map[portmap.StoredSocket]*os.File{}}
	t.Cleanup(func() { s.Settle(); s.Remove(s.all()) })
	return s
}

func (s *fdStore) all() (all []portmap.StoredSocket) {
	for sock := range s.put {
		all = append(all, sock)
	}
	return all
}

// add has the store inherit a socket, of which it takes a copy.
func (s *fdStore) add(sock interface{ File() (*os.File, error) }) {
	f, err := sock.File()
	require.NoError(s.t, err)
	s.inherited = append(s.inherited, f)
}

// next is what the next process finds.
func (s *fdStore) next() {
	s.Settle()
	for _, f := range s.put {
		s.inherited = append(s.inherited, f)
	}
	clear(s.put)
	s.settled = false
}

// lent is a file that lends its descriptor as long as it is open.
type lent struct{ *os.File }

func (l lent) Control(do func(fd uintptr)) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(do)
}

func (s *fdStore) Inherited() (all []portmap.StoredSocket) {
	for _, f := range s.inherited {
		all = append(all, lent{f})
	}
	return all
}

func cookieOf(t *testing.T, s portmap.StoredSocket) (cookie uint64) {
	_ = s.Control(func(fd uintptr) {
		var err error
		cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
		require.NoError(t, err)
	})
	return cookie
}

func (s *fdStore) Put(sockets []portmap.StoredSocket) {
	for _, sock := range sockets {
		if s.put[sock] != nil {
			continue
		}
		s.inherited = slices.DeleteFunc(s.inherited, func(f *os.File) bool {
			same := cookieOf(s.t, lent{f}) == cookieOf(s.t, sock)
			if same {
				_ = f.Close()
			}
			return same
		})
		_ = sock.Control(func(fd uintptr) {
			own, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
			require.NoError(s.t, err)
			s.put[sock] = os.NewFile(uintptr(own), "stored")
		})
	}
}

func (s *fdStore) Remove(sockets []portmap.StoredSocket) {
	for _, sock := range sockets {
		if f := s.put[sock]; f != nil {
			_ = f.Close()
			delete(s.put, sock)
		}
		if f, ok := sock.(lent); ok {
			s.inherited = slices.DeleteFunc(s.inherited, func(o *os.File) bool { return o == f.File })
			_ = f.Close()
		}
	}
}

func (s *fdStore) Settle() {
	for _, f := range s.inherited {
		_ = f.Close()
	}
	s.inherited, s.settled = nil, true
}

// heir is a Publisher that comes after another one.
func heir(t *testing.T, store *fdStore) (*portmap.Publisher, *portmaptest.Fake) {
	t.Helper()
	fake := portmaptest.NewFake()
	p := portmap.NewPublisher(portmap.PublisherConfig{Mapper: fake, FDStore: store})
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	return p, fake
}

func run(t *testing.T, sandbox string, to portmap.Target, mappings ...string) portmap.Run {
	t.Helper()
	r := portmap.Run{Sandbox: sandbox, Publication: portmap.Publication{Target: to}}
	for _, text := range mappings {
		m, err := portmap.ParseMapping(text)
		require.NoError(t, err)
		r.Mappings = append(r.Mappings, m)
	}
	return r
}

// The sockets of one process are those of the next: what waits in them is served,
// and nobody else is bound to a port in between.
func TestSocketsOutliveThePublisher(t *testing.T) {
	before := portmap.OpenSockets(t)
	store := newFDStore(t)
	first, fake := heir(t, store)
	require.NoError(t, fake.AddNetwork(rigNet))
	_, err := first.Publish("s1", target("e1", 2), bindings(t, "8080:80", "5353:53/udp", "127.0.0.1:8081:80", "[::1]:8082:80", "[::1]:5355:53/udp"), recordNothing)
	require.NoError(t, err)
	require.Len(t, store.put, 5)
	require.NoError(t, first.Close())
	require.Len(t, store.put, 5, "an orderly end leaves them")
	store.next()
	cookies := map[uint64]bool{}
	for _, s := range store.Inherited() {
		cookies[cookieOf(t, s)] = true
	}
	waiting, err := net.Dial("tcp", "[::1]:8080")
	require.NoError(t, err, "the port is nobody's, and takes connections")
	requireHeld(t, "udp", "127.0.0.1:5353")

	second, fake := heir(t, store)
	require.NoError(t, second.Restore([]portmap.Network{rigNet}, []portmap.Run{
		run(t, "s1", target("e1", 2), "8080->80", "5353->53/udp", "127.0.0.1:8081->80", "[::1]:8082->80", "[::1]:5355->53/udp")}, nil))
	require.Len(t, fake.Publications(), 1)
	require.True(t, store.settled)
	require.Len(t, store.put, 5)
	for s := range store.put {
		require.True(t, cookies[cookieOf(t, s)], "it is the same socket")
	}
	// There is no container: the proxy resets who has waited.
	require.NoError(t, waiting.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, err = waiting.Read(make([]byte, 1))
	require.False(t, os.IsTimeout(err), "it is served: %v", err)
	// 127.0.0.1:8081 is the kernel's to carry: nobody else gets in.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:8081")
	require.True(t, os.IsTimeout(err), "%v", err)

	require.NoError(t, second.Unpublish("e1"))
	require.Empty(t, store.put, "another driver may want the ports")
	requireFree(t, "udp", "[::]:5353")
	require.NoError(t, second.Close())
	require.NoError(t, waiting.Close())
	portmap.RequireSockets(t, before)
}

// What is let go, and when.
func TestStoredSocketsFollowTheirPorts(t *testing.T) {
	store := newFDStore(t)
	p, fake := heir(t, store)
	require.NoError(t, fake.AddNetwork(rigNet))
	publish := func(endpoint string, want int, specs ...string) {
		t.Helper()
		_, err := p.Publish("s1", target(endpoint, 2), bindings(t, specs...), recordNothing)
		require.NoError(t, err)
		require.Len(t, store.put, want)
	}
	publish("e1", 3, "8080:80", "5353-5354:53-54/udp")
	publish("e1", 2, "8080:80", "5353:53/udp")
	requireFree(t, "udp", "[::]:5354")
	publish("e2", 3, "8080:80", "5353:53/udp", "8081:81") // moved, and one more
	require.NoError(t, p.Unpublish("e2"))
	require.Empty(t, store.put)
	publish("e3", 3, "8080:80", "5353:53/udp", "8081:81")
	_, err := p.Publish("s2", target("e4", 3), bindings(t, "9090-9091:90-91", "8080:80"), recordNothing)
	require.ErrorIs(t, err, portmap.ErrPortInUse)
	require.Len(t, store.put, 3, "what could not be published was not stored")
	require.NoError(t, p.Release("s1"))
	require.Empty(t, store.put)
}

// An inherited socket is taken for what the kernel says it is, and one that would
// not do is out of the way.
func TestOnlyWhatABindingNeedsIsTaken(t *testing.T) {
	withOption := func(level, option int) func(string, string, syscall.RawConn) error {
		return func(_, _ string, c syscall.RawConn) error {
			var err error
			_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
			return err
		}
	}
	type socket interface{ File() (*os.File, error) }
	listen := func(network, at string, control func(string, string, syscall.RawConn) error) func() (socket, error) {
		return func() (socket, error) {
			lc := net.ListenConfig{Control: control}
			lc.SetMultipathTCP(false)
			if network[0] == 'u' {
				c, err := lc.ListenPacket(t.Context(), network, at)
				if err != nil {
					return nil, err
				}
				return c.(socket), nil
			}
			ln, err := lc.Listen(t.Context(), network, at)
			if err != nil {
				return nil, err
			}
			return ln.(socket), nil
		}
	}
	elsewhere := func(open func() (socket, error)) func() (socket, error) {
		host := netnstest.NewHost(t)
		return func() (s socket, err error) {
			err = host.Do(func() error { s, err = open(); return err })
			return s, err
		}
	}
	connected := func() (socket, error) {
		return net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5354}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9})
	}
	bound := func() (socket, error) { // and does not listen
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), "bound")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return nil, err
		}
		return fileSocket{f}, unix.Bind(fd, &unix.SockaddrInet6{Port: 8080})
	}
	tests := []struct {
		name  string
		open  func() (socket, error)
		want  string // is published
		taken bool
	}{
		{"just so", listen("tcp", ":8080", nil), "8080->80", true},
		{"just so, udp", listen("udp", ":5353", nil), "5353->53/udp", true},
		{"one address", listen("tcp4", "127.0.0.1:8081", nil), "127.0.0.1:8081->80", true},
		{"one family", listen("tcp6", "[::]:8084", nil), "[::]:8084->80", true},
		{"one family, and both are wanted", listen("tcp6", "[::]:8080", nil), "8080->80", false},
		{"the other family, and both are wanted", listen("tcp4", "0.0.0.0:8080", nil), "8080->80", false},
		{"both families, and one is wanted", listen("tcp", ":8083", nil), "0.0.0.0:8083->80", false},
		{"one address, and all are wanted", listen("udp4", "127.0.0.1:5353", nil), "5353->53/udp", false},
		{"all addresses, and one is wanted", listen("udp", ":5354", nil), "127.0.0.1:5354->53/udp", false},
		{"another address", listen("udp4", "127.0.0.2:5354", nil), "127.0.0.1:5354->53/udp", false},
		{"another port", listen("tcp", ":8079", nil), "8080->80", false},
		{"another protocol", listen("udp", ":8080", nil), "8080->80", false},
		{"connected", connected, "127.0.0.1:5354->53/udp", false},
		{"not listening", bound, "8080->80", false},
		{"shared", listen("udp", ":5353", withOption(unix.SOL_SOCKET, unix.SO_REUSEADDR)), "5353->53/udp", false},
		{"shared by a group", listen("tcp", ":8080", withOption(unix.SOL_SOCKET, unix.SO_REUSEPORT)), "8080->80", false},
		{"of one interface", listen("udp", ":5353", withOption(unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)), "5353->53/udp", false},
		{"of another network namespace", elsewhere(listen("tcp", ":8080", nil)), "8080->80", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := portmap.OpenSockets(t)
			store := newFDStore(t)
			s, err := tt.open()
			require.NoError(t, err)
			store.add(s)
			require.NoError(t, s.(interface{ Close() error }).Close())
			cookie := cookieOf(t, store.Inherited()[0])
			p, _ := heir(t, store)
			require.NoError(t, p.Restore([]portmap.Network{rigNet}, []portmap.Run{run(t, "s1", target("e1", 2), tt.want)}, nil))
			require.Empty(t, p.Lost("e1"))
			require.Len(t, store.put, 1)
			require.Empty(t, store.inherited)
			require.Equal(t, tt.taken, cookieOf(t, store.all()[0]) == cookie)
			require.NoError(t, p.Release("s1"))
			require.Empty(t, store.put)
			portmap.RequireSockets(t, before)
		})
	}
}

type fileSocket struct{ file *os.File }

func (s fileSocket) File() (*os.File, error) {
	fd, err := unix.FcntlInt(s.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return os.NewFile(uintptr(fd), "copy"), err
}

func (s fileSocket) Close() error { return s.file.Close() }

// A range of which somebody else has a port by now: what is left of it is
// inherited all the same.
func TestARangeIsInheritedInPart(t *testing.T) {
	store := newFDStore(t)
	for _, at := range []string{":5350", ":5351", ":5353"} {
		c, err := net.ListenPacket("udp", at)
		require.NoError(t, err)
		store.add(c.(*net.UDPConn))
		require.NoError(t, c.Close())
	}
	portmap.HoldPortElsewhere(t, "udp", ":5352")
	p, _ := heir(t, store)
	require.NoError(t, p.Restore([]portmap.Network{rigNet}, []portmap.Run{run(t, "s1", target("e1", 2), "5350-5353->50-53/udp")}, nil))
	require.Equal(t, []string{"5352->52/udp"}, texts(p.Lost("e1")))
	require.Len(t, store.put, 3)
	require.Empty(t, store.inherited)
}

// A range that BPF programs are to hold has no use for sockets.
func TestABlockHasInheritedSocketsClosed(t *testing.T) {
	store := newFDStore(t)
	for _, at := range []string{":20000", ":21023"} {
		ln, err := net.Listen("tcp", at)
		require.NoError(t, err)
		store.add(ln.(*net.TCPListener))
		require.NoError(t, ln.Close())
	}
	ranges := &fakeRanges{t: t, ports: map[fakePort]string{}}
	p := portmap.NewPublisher(portmap.PublisherConfig{Mapper: portmaptest.NewFake(), Ranges: closedFirst{ranges, store}, FDStore: store})
	require.NoError(t, p.Restore([]portmap.Network{rigNet}, []portmap.Run{run(t, "s1", target("e1", 2), "20000-21023->20000-21023")}, nil))
	require.Empty(t, store.put)
	require.NoError(t, p.Close())
}

// closedFirst refuses to hold a range while there are sockets of it, as the
// kernel does.
type closedFirst struct {
	*fakeRanges
	store *fdStore
}

func (r closedFirst) Reserve(proto uint8, host netip.Addr, first, last uint16) error {
	require.Empty(r.t, r.store.inherited)
	return r.fakeRanges.Reserve(proto, host, first, last)
}
