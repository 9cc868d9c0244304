package systemd_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/systemd"
	"github.com/portolan/portolan/internal/systemdtest"
)

// With its second argument the test binary is a service that says what it was
// started with.
func TestMain(m *testing.M) {
	if len(os.Args) != 2 || os.Args[1] != "what-is-inherited" {
		os.Exit(m.Run())
	}
	files, err := systemd.Inherit()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, f := range files {
		_ = f.Control(func(fd uintptr) {
			flags, _ := unix.FcntlInt(fd, unix.F_GETFD, 0)
			fmt.Println(f.Name, flags&unix.FD_CLOEXEC != 0)
		})
	}
	fmt.Println("left:", os.Getenv("LISTEN_FDS")+os.Getenv("LISTEN_PID")+os.Getenv("LISTEN_FDNAMES"))
}

// bound is a UDP socket on a port of its own.
type bound struct{ *net.UDPConn }

func (b bound) Control(do func(fd uintptr)) error {
	raw, err := b.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(do)
}

func (b bound) port() int { return b.LocalAddr().(*net.UDPAddr).Port }

func bind(t *testing.T, port int) bound {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return bound{c}
}

func bindMany(t *testing.T, n int) (all []systemd.Socket) {
	for range n {
		all = append(all, bind(t, 0))
	}
	return all
}

// open is a store of a process that a manager has started with what it keeps.
func open(t testing.TB, m *systemdtest.Manager) *systemd.Store {
	t.Helper()
	s, err := systemd.OpenStore(m.Inherit(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	require.Eventually(t, func() bool {
		files, _ := m.Files()
		for _, f := range files {
			_ = f.Close()
		}
		return len(files) == 2
	}, 10*time.Second, time.Millisecond, "systemd has the queue")
	return s
}

func requireStored(t *testing.T, m *systemdtest.Manager, want int) {
	t.Helper()
	require.Equal(t, want, m.Stored())
}

func TestPutStoresOnce(t *testing.T) {
	m := systemdtest.New(t)
	s := open(t, m)
	all := bindMany(t, 600)
	s.Put(all)
	requireStored(t, m, 600)
	s.Put(all)
	s.Put(bindMany(t, 1))
	requireStored(t, m, 601)
}

// A port that is given back is anybody's when Remove returns.
func TestRemoveLetsGoAtOnce(t *testing.T) {
	m := systemdtest.New(t)
	s := open(t, m)
	all := bindMany(t, 300)
	s.Put(all)
	for n, i := range []int{7, 299, 150, 0} {
		gone := all[i].(bound)
		require.NoError(t, gone.Close())
		_, err := net.ListenPacket("udp4", gone.LocalAddr().String())
		require.ErrorIs(t, err, unix.EADDRINUSE, "the store has it")
		s.Remove([]systemd.Socket{gone})
		bind(t, gone.port())
		requireStored(t, m, 299-n)
	}
	s.Remove(all)
	requireStored(t, m, 0)
	s.Remove(all)
}

func TestTheNextProcessHasWhatWasStored(t *testing.T) {
	m := systemdtest.New(t)
	all := bindMany(t, 10)
	open(t, m).Put(all)
	requireStored(t, m, 10)

	s := open(t, m)
	require.Len(t, s.Inherited(), 10)
	copies := all[:4] // of the same sockets, by other names
	s.Put(copies)
	assert.Len(t, s.Inherited(), 6)
	requireStored(t, m, 10)
	unwanted := s.Inherited()[0]
	s.Remove([]systemd.Socket{unwanted})
	requireStored(t, m, 9)
	s.Settle()
	requireStored(t, m, 4)
	assert.Empty(t, s.Inherited())
	for _, sock := range all[4:] {
		require.NoError(t, sock.(bound).Close())
		bind(t, sock.(bound).port())
	}

	third := open(t, m)
	third.Put(bindMany(t, 1))
	requireStored(t, m, 5)
	third.Settle()
	requireStored(t, m, 1)
}

// What finds no room is not stored, and nothing else is lost.
func TestAFullStore(t *testing.T) {
	m := systemdtest.New(t)
	s := open(t, m)
	all := bindMany(t, 3)
	s.Put(all)
	var before, now unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	now = before
	now.Cur = 3 // no copy can be opened
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &now))
	s.Put([]systemd.Socket{all[0], &failing{all[1]}})
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before))
	requireStored(t, m, 3)
	s.Remove(all[:1])
	requireStored(t, m, 2)
}

// failing is another name of a socket.
type failing struct{ systemd.Socket }

// What systemd keeps under our names and is no queue, and what it keeps under
// others, goes.
func TestStrangersInTheStore(t *testing.T) {
	m := systemdtest.New(t)
	t.Setenv("NOTIFY_SOCKET", m.Address())
	var files []*systemd.File
	for _, name := range []string{"ports-in", "ports-out", "stored", "ports-in"} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		files = append(files, systemd.NewFile(name, fd))
	}
	s, err := systemd.OpenStore(files, nil)
	require.NoError(t, err)
	defer s.Close()
	for _, f := range files {
		require.ErrorIs(t, f.Control(func(uintptr) {}), os.ErrClosed)
	}
	require.Empty(t, s.Inherited())
	s.Put(bindMany(t, 2))
	require.Eventually(t, func() bool { return m.Stored() == 2 }, 10*time.Second, time.Millisecond)
}

func TestWhatHasNoDescriptorIsNotStored(t *testing.T) {
	m := systemdtest.New(t)
	s := open(t, m)
	closed := bind(t, 0)
	require.NoError(t, closed.Close())
	s.Put([]systemd.Socket{closed, bind(t, 0)})
	requireStored(t, m, 1)
	s.Remove([]systemd.Socket{closed})
	requireStored(t, m, 1)
}

// service runs the test binary as a service and returns what it prints.
func service(t *testing.T, m *systemdtest.Manager) string {
	t.Helper()
	var out strings.Builder
	program, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(program, "what-is-inherited")
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, m.Start(cmd, nil, (*exec.Cmd).Run), "%s", &out)
	return out.String()
}

func TestInherit(t *testing.T) {
	m := systemdtest.New(t)
	assert.Equal(t, "left: \n", service(t, m))
	open(t, m)
	assert.Equal(t, "ports-in true\nports-out true\nleft: \n", service(t, m))
}

func TestInheritIsNotForAnotherProcess(t *testing.T) {
	for pid, count := range map[string]string{"1": "3", "": "3", fmt.Sprint(os.Getpid()): ""} {
		t.Setenv("LISTEN_PID", pid)
		t.Setenv("LISTEN_FDS", count)
		files, err := systemd.Inherit()
		require.NoError(t, err)
		assert.Empty(t, files)
		assert.Empty(t, os.Getenv("LISTEN_FDS"))
	}
	for _, count := range []string{"x", "-1", "3 "} {
		t.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid()))
		t.Setenv("LISTEN_FDS", count)
		_, err := systemd.Inherit()
		require.ErrorContains(t, err, "LISTEN_FDS is")
	}
}

func TestStoreSize(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	for text, want := range map[string]int{"": 0, "2": 2, "4096": 4096, "0": 0, "-1": 0, "many": 0} {
		t.Setenv("FDSTORE", text)
		assert.Equal(t, want, systemd.StoreSize(), text)
	}
	t.Setenv("FDSTORE", "2")
	t.Setenv("NOTIFY_SOCKET", "")
	assert.Zero(t, systemd.StoreSize())
}

func TestOpenStoreWithoutAManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "vsock:2:1")
	_, err := systemd.OpenStore(nil, nil)
	require.ErrorContains(t, err, "no unix socket")
	t.Setenv("NOTIFY_SOCKET", "/nonexistent")
	_, err = systemd.OpenStore(nil, nil)
	require.ErrorIs(t, err, os.ErrNotExist)
}
