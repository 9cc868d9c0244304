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
			sa, _ := unix.Getsockname(int(fd))
			fmt.Println(f.Name, sa.(*unix.SockaddrInet4).Port, flags&unix.FD_CLOEXEC != 0)
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
func open(t *testing.T, m *systemdtest.Manager) *systemd.Store {
	t.Helper()
	t.Setenv("NOTIFY_SOCKET", m.Address())
	n, err := systemd.Dial()
	require.NoError(t, err)
	t.Cleanup(func() { _ = n.Close() })
	files, names := m.Files()
	var inherited []*systemd.File
	for i, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		inherited = append(inherited, systemd.NewFile(names[i], fd))
	}
	return systemd.NewStore(systemd.StoreConfig{Notifier: n, Inherited: inherited, Max: m.Max})
}

func requireStored(t *testing.T, m *systemdtest.Manager, want int) {
	t.Helper()
	require.Eventually(t, func() bool { return m.Stored() == want }, 10*time.Second, time.Millisecond, "%d are stored, want %d", m.Stored(), want)
}

func TestPutSendsFewMessages(t *testing.T) {
	m := systemdtest.New(t)
	s := open(t, m)
	all := bindMany(t, 600)
	s.Put(all)
	requireStored(t, m, 600)
	assert.Equal(t, 3, m.Messages(), "253 in each")
	s.Put(all)
	s.Put(bindMany(t, 1))
	requireStored(t, m, 601)
	assert.Equal(t, 4, m.Messages(), "what is stored is not sent again")
}

// A port that is given back is anybody's when Remove returns, however late the
// manager hears of it.
func TestRemoveWaitsForTheManager(t *testing.T) {
	m := systemdtest.New(t)
	s := open(t, m)
	all := bindMany(t, 300)
	s.Put(all)
	requireStored(t, m, 300)
	for _, i := range []int{7, 299, 150} {
		gone := all[i].(bound)
		require.NoError(t, gone.Close())
		release := m.Hold()
		time.AfterFunc(50*time.Millisecond, release)
		s.Remove([]systemd.Socket{gone})
		bind(t, gone.port())
	}
	requireStored(t, m, 297)
	s.Remove(all)
	assert.Zero(t, m.Stored())
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
	assert.Equal(t, 1, m.Messages(), "what is stored is not sent again")
	unwanted := s.Inherited()[0]
	s.Remove([]systemd.Socket{unwanted})
	assert.Equal(t, 9, m.Stored())
	s.Settle()
	assert.Equal(t, 4, m.Stored())
	assert.Empty(t, s.Inherited())
	for _, sock := range all[4:] {
		require.NoError(t, sock.(bound).Close())
		bind(t, sock.(bound).port())
	}

	_, names := m.Files()
	third := open(t, m)
	third.Put(bindMany(t, 1))
	requireStored(t, m, 5)
	_, now := m.Files()
	assert.NotContains(t, names, now[4], "a name of its own, or removing it would remove others")
	third.Settle()
	requireStored(t, m, 1)
}

// A manager that is busy holds nobody up, and misses nothing.
func TestPutDoesNotWait(t *testing.T) {
	m := systemdtest.New(t)
	s := open(t, m)
	release := m.Hold()
	var all []systemd.Socket
	var err error
	for err == nil { // until the manager's queue is full
		more := bindMany(t, 1)
		s.Put(more)
		all = append(all, more...)
		err = s.Flush()
		require.Less(t, len(all), 2000)
	}
	require.ErrorIs(t, err, unix.EAGAIN)
	release()
	require.Eventually(t, func() bool { return s.Flush() == nil }, 10*time.Second, time.Millisecond)
	requireStored(t, m, len(all))
}

func TestAManagerThatDoesNotAnswerIsWaitedForSomeSeconds(t *testing.T) {
	m := systemdtest.New(t)
	s := open(t, m)
	all := bindMany(t, 2)
	s.Put(all)
	requireStored(t, m, 2)
	defer m.Hold()()
	began := time.Now()
	s.Remove(all[:1])
	assert.Less(t, time.Since(began), 20*time.Second)
}

func TestStoreTakesNoMoreThanThereIsRoomFor(t *testing.T) {
	m := systemdtest.New(t)
	m.Max = 5
	s := open(t, m)
	all := bindMany(t, 9)
	s.Put(all)
	requireStored(t, m, 5)
	s.Remove(all[:2])
	s.Put(all[7:])
	requireStored(t, m, 5)
}

func TestWhatHasNoDescriptorIsNotStored(t *testing.T) {
	m := systemdtest.New(t)
	s := open(t, m)
	closed := bind(t, 0)
	require.NoError(t, closed.Close())
	s.Put([]systemd.Socket{closed, bind(t, 0)})
	requireStored(t, m, 1)
	s.Remove([]systemd.Socket{closed})
	require.NoError(t, s.Flush())
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
	all := bindMany(t, 2)
	s := open(t, m)
	s.Put(all[:1])
	s.Put(all[1:])
	requireStored(t, m, 2)
	assert.Equal(t, fmt.Sprintf("ports-0 %d true\nports-1 %d true\nleft: \n", all[0].(bound).port(), all[1].(bound).port()), service(t, m))
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

func TestDial(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n, err := systemd.Dial()
	require.NoError(t, err)
	assert.Nil(t, n)
	t.Setenv("NOTIFY_SOCKET", "vsock:2:1")
	_, err = systemd.Dial()
	require.ErrorContains(t, err, "no unix socket")
}

func TestMax(t *testing.T) {
	for text, want := range map[string]int{"": 0, "4096": 4096, "0": 0, "-1": 0, "many": 0} {
		t.Setenv("FDSTORE", text)
		assert.Equal(t, want, systemd.Max(), text)
	}
}
