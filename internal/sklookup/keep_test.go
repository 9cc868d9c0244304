package sklookup

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/systemd"
	"github.com/portolan/portolan/internal/systemdtest"
)

// inherit is what a process that a manager starts has of earlier ones.
func inherit(t *testing.T, m *systemdtest.Manager) *systemd.Named {
	t.Helper()
	named := systemd.NewNamed(m.Inherit(t))
	t.Cleanup(func() { _ = named.Close() })
	return named
}

// openWith is open with what a manager keeps, of a process that recorded some ports.
func openWith(t *testing.T, m *systemdtest.Manager, recorded *string) *Table {
	t.Helper()
	table, err := Open(Config{Cgroup: testCgroup(t), Keep: inherit(t, m), Recorded: *recorded, Record: func(added string) error {
		*recorded = added
		return nil
	}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = table.Close() })
	return table
}

// kill ends a Table as the end of a process does that nobody has told.
func kill(t *testing.T, table *Table) {
	t.Helper()
	table.left = true
	require.NoError(t, table.Close())
	require.NoError(t, table.keep.(*systemd.Named).Close())
}

// requireKept waits for names, each as often as a descriptor is kept under it.
func requireKept(t *testing.T, m *systemdtest.Manager, want string) {
	t.Helper()
	m.RequireNames(t, strings.Fields(want)...)
}

const (
	keptSocketsOnly = "ranges-sockets ranges-sockets ranges-sockets ranges-sockets"
	keptFirst       = "ranges-1 ranges-1 ranges-1 ranges-1-variables"
	keptSecond      = "ranges-2 ranges-2 ranges-2 ranges-2-variables"
	linksOfSecond   = "ranges-2 ranges-2 ranges-2"
)

// What a killed process held stays held until the next one has taken up what it
// wants of it, and who came meanwhile is served.
func TestTheNextProcessTakesOver(t *testing.T) {
	open(t) // or skip
	m := systemdtest.New(t)
	ids, added := killHolder(t, "NOTIFY_SOCKET="+m.Address())
	requireKept(t, m, keptFirst+" "+keptSocketsOnly)
	other := newProcess(t)
	refused := func(addr string) {
		t.Helper()
		for _, proto := range []uint8{tcp, udp} {
			require.Contains(t, other.bind(t, proto, addr), "in use")
		}
	}
	refused("0.0.0.0:20000")
	refused("[::]:29999")
	require.Equal(t, added, reservedPorts(t))
	dialled, err := net.DialTimeout("tcp", "127.0.0.1:20001", patience)
	require.NoError(t, err)
	defer dialled.Close()
	asking, err := net.Dial("udp", "[::1]:20002")
	require.NoError(t, err)
	defer asking.Close()
	_, err = asking.Write([]byte("question"))
	require.NoError(t, err)

	table := openWith(t, m, &added)
	for _, proto := range []int{tcp, udp} { // as sockets of flows do
		fd, err := bindSocket(proto, netip.MustParseAddrPort("127.0.0.1:20003"), "")
		require.NoError(t, err)
		require.NoError(t, unix.Close(fd))
	}
	refused("0.0.0.0:20000")
	require.NoError(t, table.Reserve(tcp, everywhere, 20000, 24999))
	require.NoError(t, table.Reserve(udp, everywhere, 20000, 24999))
	require.Equal(t, "20000-29999", reservedPorts(t), "not before Settle")
	listeners, conns, err := table.Sockets()
	require.NoError(t, err)
	for i := range 2 {
		t.Cleanup(func() { _, _ = listeners[i].Close(), conns[i].Close() })
	}
	askForDestination(t, conns)
	for _, proto := range []uint8{tcp, udp} {
		require.NoError(t, table.Steer(proto, everywhere, 20000, 24999, true, true, true))
	}
	require.NoError(t, listeners[0].SetDeadline(time.Now().Add(patience)))
	got, err := listeners[0].Accept()
	require.NoError(t, err)
	defer got.Close()
	require.Equal(t, dialled.LocalAddr().String(), got.RemoteAddr().String())
	data, client, local, err := udpAnswer(conns[1], patience)
	require.NoError(t, err)
	require.Equal(t, "question", data)
	require.Equal(t, asking.LocalAddr().String(), client.String())
	require.Equal(t, "[::1]:20002", local.String())
	refused("0.0.0.0:25000")
	requireKept(t, m, keptFirst+" "+linksOfSecond+" "+keptSocketsOnly)

	table.Settle()
	for _, proto := range []uint8{tcp, udp} {
		require.Empty(t, other.bind(t, proto, "0.0.0.0:25000"), "at once")
	}
	refused("0.0.0.0:24999")
	require.Equal(t, "20000-24999", reservedPorts(t))
	require.Equal(t, "20000-24999", added)
	requireKept(t, m, keptSecond+" "+keptSocketsOnly)
	requireUnloaded(t, ids)
	again, err := net.DialTimeout("tcp", "[::1]:20004", patience)
	require.NoError(t, err)
	require.NoError(t, again.Close())

	for _, proto := range []uint8{tcp, udp} {
		require.NoError(t, table.Release(proto, everywhere, 20000, 24999))
	}
	requireKept(t, m, "")
	require.Empty(t, reservedPorts(t))
	require.Empty(t, added)
}

// An orderly end leaves what is held to the next process, and nothing where nothing
// is.
func TestLeave(t *testing.T) {
	open(t) // or skip
	m := systemdtest.New(t)
	var added string
	table := openWith(t, m, &added)
	require.NoError(t, table.Reserve(udp, everywhere, 20000, 29999))
	requireKept(t, m, keptFirst)
	table.Leave()
	require.NoError(t, table.Release(udp, everywhere, 20000, 29999), "of a port that is closed after")
	require.NoError(t, table.Close())
	other := newProcess(t)
	require.Contains(t, other.bind(t, udp, "0.0.0.0:20000"), "in use")
	require.Equal(t, "20000-29999", reservedPorts(t))

	table = openWith(t, m, &added)
	table.Settle()
	require.Empty(t, other.bind(t, udp, "0.0.0.0:20000"), "nobody wants it any more")
	requireKept(t, m, "")
	require.Empty(t, reservedPorts(t))
	table.Leave()
	require.NoError(t, table.Close())
	require.Empty(t, added)
}

// A process that is killed while it starts has taken up a part at most: what the one
// before it held is held.
func TestKilledWhileItTakesOver(t *testing.T) {
	open(t) // or skip
	m := systemdtest.New(t)
	ids, added := killHolder(t, "NOTIFY_SOCKET="+m.Address())
	second := openWith(t, m, &added)
	require.NoError(t, second.Reserve(udp, everywhere, 20000, 20999))
	unfinished, err := programIDs(second)
	require.NoError(t, err)
	kill(t, second)
	requireKept(t, m, keptFirst+" "+linksOfSecond+" "+keptSocketsOnly)

	third := openWith(t, m, &added)
	requireUnloaded(t, unfinished)
	for _, id := range ids {
		require.True(t, isLoaded(id))
	}
	other := newProcess(t)
	require.Contains(t, other.bind(t, udp, "0.0.0.0:29999"), "in use")
	require.Equal(t, "20000-29999", reservedPorts(t))
	require.NoError(t, third.Reserve(udp, everywhere, 20000, 29999))
	third.Settle()
	requireUnloaded(t, ids)
	require.Contains(t, other.bind(t, udp, "0.0.0.0:29999"), "in use")
	requireKept(t, m, "ranges-3 ranges-3 ranges-3 ranges-3-variables "+keptSocketsOnly)
	require.NoError(t, third.Release(udp, everywhere, 20000, 29999))
	requireKept(t, m, "")
}

// What no process takes over is free at once, and what is not understood holds
// nothing.
func TestForget(t *testing.T) {
	open(t) // or skip
	m := systemdtest.New(t)
	ids, added := killHolder(t, "NOTIFY_SOCKET="+m.Address())
	other := newProcess(t)
	require.Contains(t, other.bind(t, udp, "0.0.0.0:20000"), "in use")
	Forget(inherit(t, m), slog.New(slog.DiscardHandler))
	require.Empty(t, other.bind(t, udp, "0.0.0.0:20000"))
	require.Empty(t, other.bind(t, udp, "0.0.0.0:30000"), "it lets go of the first")
	requireKept(t, m, "")
	requireUnloaded(t, ids)
	require.NoError(t, Unreserve("/proc/sys/net", added))

	strangers := inherit(t, m)
	for _, name := range []string{"ranges-0", "ranges-0-variables", "ranges-sockets", "ranges-7-variables"} {
		pipe, end, err := os.Pipe()
		require.NoError(t, err)
		require.NoError(t, strangers.Put(name, socketOf{pipe}))
		require.NoError(t, errors.Join(pipe.Close(), end.Close()))
	}
	requireKept(t, m, "ranges-0 ranges-0-variables ranges-7-variables ranges-sockets")
	added = ""
	openWith(t, m, &added)
	requireKept(t, m, "")
}

// Of two that hold all, as one leaves that is killed in Settle, the later is the one.
func TestKilledWhileItSettles(t *testing.T) {
	open(t) // or skip
	m := systemdtest.New(t)
	ids, added := killHolder(t, "NOTIFY_SOCKET="+m.Address())
	second := openWith(t, m, &added)
	require.NoError(t, second.Reserve(udp, everywhere, 20000, 20999))
	later, err := programIDs(second)
	require.NoError(t, err)
	require.True(t, second.put(variablesOf(second.generation), second.variables))
	kill(t, second)
	requireKept(t, m, keptFirst+" "+keptSecond+" "+keptSocketsOnly)

	third := openWith(t, m, &added)
	requireUnloaded(t, ids)
	for _, id := range later {
		require.True(t, isLoaded(id))
	}
	other := newProcess(t)
	require.Contains(t, other.bind(t, udp, "0.0.0.0:20999"), "in use")
	require.Empty(t, other.bind(t, udp, "0.0.0.0:29999"))
	third.Settle()
	requireKept(t, m, "")
	require.Empty(t, other.bind(t, udp, "0.0.0.0:20999"))
}

// deafFor is a Keeper that keeps all but some.
type deafFor struct {
	*systemd.Named
	suffix string
}

var errDeaf = errors.New("nobody hears")

func (d *deafFor) Put(name string, what ...Descriptor) error {
	if d.suffix != "" && strings.HasSuffix(name, d.suffix) {
		return errDeaf
	}
	return d.Named.Put(name, what...)
}

// What cannot be kept whole is not kept, tried again with the next change, and given
// back at the end.
func TestWhatCannotBeKept(t *testing.T) {
	open(t) // or skip
	m := systemdtest.New(t)
	other := newProcess(t)
	isFree := func() {
		t.Helper()
		require.Empty(t, other.bind(t, udp, "0.0.0.0:20000"))
		require.Empty(t, other.bind(t, udp, "0.0.0.0:40000"), "it lets go of the first")
	}
	for _, suffix := range []string{"ranges-1", keptVariables, keptSockets} {
		keep := &deafFor{inherit(t, m), suffix}
		table, err := Open(Config{Cgroup: testCgroup(t), Keep: keep})
		require.NoError(t, err)
		require.NoError(t, table.Reserve(udp, everywhere, 20000, 29999))
		requireKept(t, m, "")
		keep.suffix = ""
		require.NoError(t, table.Reserve(udp, everywhere, 30000, 30999))
		requireKept(t, m, keptFirst)
		require.NoError(t, table.Close(), "with no Leave")
		isFree()
		require.Empty(t, reservedPorts(t))
		Forget(inherit(t, m), slog.New(slog.DiscardHandler))
		requireKept(t, m, "")
	}

	ids, added := killHolder(t, "NOTIFY_SOCKET="+m.Address())
	keep := &deafFor{inherit(t, m), keptVariables}
	table, err := Open(Config{Cgroup: testCgroup(t), Keep: keep, Recorded: added})
	require.NoError(t, err)
	require.NoError(t, table.Reserve(udp, everywhere, 20000, 29999))
	table.Settle()
	requireKept(t, m, "")
	requireUnloaded(t, ids)
	require.Contains(t, other.bind(t, udp, "0.0.0.0:20000"), "in use")
	table.Leave()
	require.NoError(t, table.Close())
	isFree()
	require.Empty(t, reservedPorts(t))
}
