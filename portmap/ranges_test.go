package portmap_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
)

// fakeRanges remembers each port. What it cannot show is that the kernel does as
// told; that is package sklookup's own test, and TestRangesTraffic.
type fakeRanges struct {
	t     *testing.T
	ports map[fakePort]string // to what is done with it
	taken []uint16            // by another process
	calls int

	settled int // what was held then
}

type fakePort struct {
	proto uint8
	host  netip.Addr
	port  uint16
}

type takenError struct {
	first uint16
	more  int
}

func (e takenError) Error() string        { return "taken" }
func (e takenError) Unwrap() error        { return syscall.EADDRINUSE }
func (e takenError) Taken() (uint16, int) { return e.first, e.more }

func (f *fakeRanges) Reserve(proto uint8, host netip.Addr, first, last uint16) error {
	f.calls++
	var taken []uint16
	for _, p := range f.taken {
		if first <= p && p <= last {
			taken = append(taken, p)
		}
	}
	if len(taken) > 0 {
		return fmt.Errorf("reserve: %w", takenError{slices.Min(taken), len(taken) - 1})
	}
	f.set(proto, host, first, last, "", "dropped")
	return nil
}

func (f *fakeRanges) Steer(proto uint8, host netip.Addr, first, last uint16, ip4, ip6, local6 bool) error {
	f.set(proto, host, first, last, "known", fmt.Sprintf("%v,%v,%v", ip4, ip6, local6))
	return nil
}

func (f *fakeRanges) Release(proto uint8, host netip.Addr, first, last uint16) error {
	f.set(proto, host, first, last, "known", "")
	return nil
}

// set checks that all ports are known before, or none.
func (f *fakeRanges) set(proto uint8, host netip.Addr, first, last uint16, before, now string) {
	for p := int(first); p <= int(last); p++ {
		k := fakePort{proto, host, uint16(p)}
		_, known := f.ports[k]
		assert.Equal(f.t, before == "known", known, "port %d before %q", p, now)
		if now == "" {
			delete(f.ports, k)
		} else {
			f.ports[k] = now
		}
	}
}

func (f *fakeRanges) Settle() { f.settled = len(f.ports) }

func (f *fakeRanges) Sockets() ([]*net.TCPListener, []*net.UDPConn, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, errors.Join(err, ln.Close())
	}
	return []*net.TCPListener{ln.(*net.TCPListener)}, []*net.UDPConn{c.(*net.UDPConn)}, nil
}

// held are the ports, and what is done with them, as ranges.
func (f *fakeRanges) held() (out []string) {
	keys := make([]fakePort, 0, len(f.ports))
	for k := range f.ports {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b fakePort) int {
		return 1<<20*(int(a.proto)-int(b.proto)) + 1<<18*a.host.Compare(b.host) + int(a.port) - int(b.port)
	})
	for i := 0; i < len(keys); {
		j := i
		for j+1 < len(keys) && keys[j+1] == (fakePort{keys[i].proto, keys[i].host, keys[j].port + 1}) && f.ports[keys[j+1]] == f.ports[keys[i]] {
			j++
		}
		out = append(out, fmt.Sprintf("%d %d-%d %s", keys[i].proto, keys[i].port, keys[j].port, f.ports[keys[i]]))
		i = j + 1
	}
	return out
}

func newRangesRig(t *testing.T) (*rig, *fakeRanges) {
	t.Helper()
	f := &fakeRanges{t: t, ports: map[fakePort]string{}}
	r := &rig{t: t, fake: portmaptest.NewFake()}
	require.NoError(t, r.fake.AddNetwork(rigNet))
	before := portmap.OpenSockets(t)
	r.Publisher = portmap.NewPublisher(portmap.PublisherConfig{Mapper: r.fake, Ranges: f})
	t.Cleanup(func() {
		assert.NoError(t, r.Close())
		assert.Empty(t, f.ports)
		assert.Equal(t, before, portmap.OpenSockets(t), "sockets after Close")
	})
	return r, f
}

// A long range is held as one, from Publish to Release; a short one by sockets.
func TestRangesHoldLongRanges(t *testing.T) {
	r, f := newRangesRig(t)
	got := r.publish("s1", target("e1", 2), "10000-19999:10000-19999/udp", "20000-22000:30000-32000", "80:80", "9000-9100:9000-9100/udp")
	require.Equal(t, []string{"80->80", "20000-22000->30000-32000", "9000-9100->9000-9100/udp", "10000-19999->10000-19999/udp"}, got)
	require.Equal(t, []string{"6 20000-22000 false,false,true", "17 10000-19999 false,false,true"}, f.held())
	require.Equal(t, 2, f.calls)

	require.NoError(t, r.Unpublish("e1"))
	require.Empty(t, f.held(), "another driver may need them")
	require.Equal(t, got, r.publish("s1", target("e1", 2), "10000-19999:10000-19999/udp", "20000-22000:30000-32000", "80:80", "9000-9100:9000-9100/udp"))
	require.Equal(t, []string{"6 20000-22000 false,false,true", "17 10000-19999 false,false,true"}, f.held())

	// Again, to a container without IPv4.
	r.publish("s1", only6(target("e2", 3)), "10000-19999:10000-19999/udp")
	require.Equal(t, []string{"17 10000-19999 true,false,true"}, f.held())
	require.Equal(t, 4, f.calls, "what is held is not reserved again")
	require.NoError(t, r.Release("s1"))
	require.Empty(t, f.held())
}

// What a sandbox goes on publishing of a range stays, the rest goes, and what is
// new is reserved by itself.
func TestRangesInParts(t *testing.T) {
	r, f := newRangesRig(t)
	to := target("e1", 2)
	r.publish("s1", to, "10000-19999:10000-19999/udp")
	require.Equal(t, []string{"12000-13000->12000-13000/udp", "15000-21999->15000-21999/udp"},
		r.publish("s1", to, "12000-13000:12000-13000/udp", "15000-21999:15000-21999/udp"))
	require.Equal(t, []string{"17 12000-13000 false,false,true", "17 15000-21999 false,false,true"}, f.held())
	require.Equal(t, 2, f.calls)
	// Another container has what is free now.
	r.publish("s2", target("e2", 3), "13001-14999:13001-14999/udp")
	require.Equal(t, []string{"17 12000-21999 false,false,true"}, f.held())
	_, err := r.Publish("s2", target("e2", 3), bindings(t, "13001-15001:13001-15001/udp"), recordNothing)
	require.ErrorContains(t, err, "udp port 15000 (and 1 more of ")
	require.Equal(t, []string{"17 12000-21999 false,false,true"}, f.held())
	require.NoError(t, r.Release("s1"))
	require.Equal(t, []string{"17 13001-14999 false,false,true"}, f.held())
}

func TestRangesInUse(t *testing.T) {
	r, f := newRangesRig(t)
	f.taken = []uint16{10005, 10007}
	_, err := r.Publish("s1", target("e1", 2), bindings(t, "80:80", "10000-19999:10000-19999/udp"), recordNothing)
	require.ErrorIs(t, err, portmap.ErrPortInUse)
	require.ErrorContains(t, err, "udp port 10005 (and 1 more of 10000-19999->10000-19999/udp) is in use by another process")
	require.Empty(t, f.held())

	_, err = r.Publish("s1", target("e1", 2), bindings(t, "20000-29999:20000-29999/udp", "20000-29999:20000-29999/udp"), recordNothing)
	require.ErrorContains(t, err, "asked for twice")
	require.Empty(t, f.held())
}

// After a restart a range is held but for what somebody took meanwhile, until
// that is free.
func TestRangesRestored(t *testing.T) {
	r, f := newRangesRig(t)
	f.taken = []uint16{15000}
	other := portmap.HoldPort(t, "udp4", "0.0.0.0:15000")
	run := portmap.Run{Sandbox: "s1", Publication: portmap.Publication{
		Target:   target("e1", 2),
		Mappings: []portmap.Mapping{{Proto: portmap.UDP, HostPort: 10000, HostPortEnd: 19999, Port: 10000, Origin: portmap.OriginEngine}},
	}}
	require.NoError(t, r.Restore([]portmap.Network{rigNet}, []portmap.Run{run}, nil))
	require.Equal(t, []string{"15000->15000/udp"}, texts(r.Lost("e1")))
	require.Equal(t, []string{"17 10000-14999 false,false,true", "17 16250-19999 false,false,true"}, f.held())
	require.Equal(t, len(f.ports), f.settled, "what an earlier process held is given up when this one holds it")
	require.NoError(t, r.Retry())
	require.Len(t, r.Lost("e1"), 1)
	require.NoError(t, other.Close())
	require.NoError(t, r.Retry())
	require.Empty(t, r.Lost("e1"))
	require.Equal(t, []string{"10000-19999->10000-19999/udp"}, texts(r.fake.Publications()[0].Mappings))
}

// Where files are short, what a socket each would take is held as a range.
func TestRangesWhereFilesAreShort(t *testing.T) {
	r, f := newRangesRig(t)
	var old unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	few := unix.Rlimit{Cur: 128, Max: old.Max}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	t.Cleanup(func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) })
	require.Equal(t, []string{"10000-10999->10000-10999/udp"}, r.publish("s1", target("e1", 2), "10000-10999:10000-10999/udp"))
	require.Equal(t, []string{"17 10000-10999 false,false,true"}, f.held())
}
