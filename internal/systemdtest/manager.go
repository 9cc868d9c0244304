// Package systemdtest does for tests what systemd does for a service: it hears
// what the service tells it (sd_notify(3)), keeps the descriptors that it stores, and
// starts it with them.
package systemdtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/systemd"
)

// Manager is a service manager with one service. As systemd does, it keeps no
// descriptor twice, removes by name, and closes what it was not asked to store.
type Manager struct {
	// Max is how many descriptors it keeps (FileDescriptorStoreMax).
	Max int

	conn  *net.UnixConn
	ended chan struct{}

	mu     sync.Mutex // guards below
	stored []entry
	said   []string // all lines, but for those about descriptors
}

type entry struct {
	name string
	fd   int
}

// New returns a manager that listens until the test ends.
func New(t testing.TB) *Manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "systemd") // t.TempDir is too long for a socket's path
	require.NoError(t, err)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	require.NoError(t, err)
	m := &Manager{Max: 16, conn: conn, ended: make(chan struct{})}
	go m.listen()
	t.Cleanup(func() {
		_ = conn.Close()
		<-m.ended
		m.Forget()
		_ = os.RemoveAll(dir)
	})
	return m
}

// Address is what NOTIFY_SOCKET must be.
func (m *Manager) Address() string { return m.conn.LocalAddr().String() }

// listen ends when conn is closed.
func (m *Manager) listen() {
	defer close(m.ended)
	text, rights := make([]byte, 4096), make([]byte, 4096)
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(text, rights)
		if err != nil {
			return
		}
		var fds []int
		if messages, err := unix.ParseSocketControlMessage(rights[:oobn]); err == nil && len(messages) > 0 {
			fds, _ = unix.ParseUnixRights(&messages[0])
		}
		m.hear(strings.Split(string(text[:n]), "\n"), fds)
	}
}

func (m *Manager) hear(lines []string, fds []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := "stored"
	for _, l := range lines {
		if given, ok := strings.CutPrefix(l, "FDNAME="); ok {
			name = given
		}
	}
	switch {
	case slices.Contains(lines, "FDSTORE=1"):
		for _, fd := range fds {
			m.keep(name, fd)
		}
		return
	case slices.Contains(lines, "FDSTOREREMOVE=1"):
		m.remove(func(e entry) bool { return e.name == name })
	default:
		m.said = append(m.said, lines...)
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

func (m *Manager) keep(name string, fd int) {
	known := slices.ContainsFunc(m.stored, func(e entry) bool { return sameFile(e.fd, fd) })
	if known || len(m.stored) >= m.Max {
		_ = unix.Close(fd)
		return
	}
	unix.CloseOnExec(fd)
	m.stored = append(m.stored, entry{name, fd})
}

// sameFile is kcmp(2) with KCMP_FILE, by which systemd tells.
func sameFile(a, b int) bool {
	self := uintptr(os.Getpid())
	differ, _, errno := unix.Syscall6(unix.SYS_KCMP, self, self, 0, uintptr(a), uintptr(b), 0)
	if errno != 0 {
		panic(fmt.Sprint("kcmp: ", errno))
	}
	return differ == 0
}

func (m *Manager) remove(which func(entry) bool) {
	m.stored = slices.DeleteFunc(m.stored, func(e entry) bool {
		if which(e) {
			_ = unix.Close(e.fd)
			return true
		}
		return false
	})
}

// Forget closes all that is stored, as systemd does when a service is stopped.
func (m *Manager) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(func(entry) bool { return true })
}

// Stored is how many sockets are in the store: the length of the queue that is
// there.
func (m *Manager) Stored() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.stored {
		if e.name != "ports-out" {
			continue
		}
		if n, err := unix.IoctlGetInt(e.fd, unix.TIOCINQ); err == nil {
			return n
		}
	}
	return 0
}

// Said are the lines that it was told, but for those about sockets.
func (m *Manager) Said() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.said)
}

// Files are copies of what is stored, and the names, in order. The caller closes
// them.
func (m *Manager) Files() (files []*os.File, names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.stored {
		fd, err := unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			panic(err)
		}
		files, names = append(files, os.NewFile(uintptr(fd), e.name)), append(names, e.name)
	}
	return files, names
}

// Inherit is what a process has of it that is started now, and has the test be that
// process. Whoever takes the files up closes them.
func (m *Manager) Inherit(t testing.TB) (inherited []*systemd.File) {
	t.Helper()
	t.Setenv("NOTIFY_SOCKET", m.Address())
	files, names := m.Files()
	for i, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		inherited = append(inherited, systemd.NewFile(names[i], fd))
	}
	return inherited
}

// RequireNames waits until descriptors are stored under these names, sorted, each as
// often as there is one.
func (m *Manager) RequireNames(t testing.TB, want ...string) {
	t.Helper()
	require.Eventually(t, func() bool {
		files, names := m.Files()
		for _, f := range files {
			_ = f.Close()
		}
		slices.Sort(names)
		return slices.Equal(want, names)
	}, 10*time.Second, time.Millisecond, "want %v", want)
}

// Start starts a command as the service: with the socket that it listens on, if it
// has one, and all that is stored. The command replaces itself by others, as
// nsenter does, if at all.
func (m *Manager) Start(cmd *exec.Cmd, listener *os.File, start func(*exec.Cmd) error) error {
	files, names := m.Files()
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	passed := slices.Clone(files)
	if listener != nil {
		passed, names = append([]*os.File{listener}, passed...), append([]string{"portolan.socket"}, names...)
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.Address(), fmt.Sprintf("FDSTORE=%d", m.Max))
	if len(passed) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(passed)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	cmd.ExtraFiles = passed
	sh, err := exec.LookPath("sh")
	if err != nil {
		return err
	}
	cmd.Args = append([]string{"sh", "-c", `export LISTEN_PID=$$; exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = sh
	return start(cmd)
}
