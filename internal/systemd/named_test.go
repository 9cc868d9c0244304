package systemd_test

import (
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/systemd"
	"github.com/portolan/portolan/internal/systemdtest"
)

// openNamed is what a process that a manager has started finds.
func openNamed(t *testing.T, m *systemdtest.Manager) *systemd.Named {
	t.Helper()
	t.Setenv("NOTIFY_SOCKET", m.Address())
	files, names := m.Files()
	var all []*systemd.File
	for i, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		all = append(all, systemd.NewFile(names[i], fd))
	}
	n := systemd.NewNamed(all)
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func requireNames(t *testing.T, m *systemdtest.Manager, want ...string) {
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

func TestNamed(t *testing.T) {
	m := systemdtest.New(t)
	n := openNamed(t, m)
	require.Empty(t, n.Inherited())
	first, second, closed := bind(t, 0), bind(t, 0), bind(t, 0)
	require.NoError(t, closed.Close())
	require.NoError(t, n.Put("a", first, closed))
	require.NoError(t, n.Put("b", second, first))
	require.NoError(t, n.Put("c", closed))
	requireNames(t, m, "a", "b")

	// The next process has them, also when this one's are closed.
	require.NoError(t, first.Close())
	next := openNamed(t, m)
	inherited := next.Inherited()
	require.Len(t, inherited, 2)
	require.Len(t, inherited["a"], 1)
	_, err := net.ListenUDP("udp4", first.LocalAddr().(*net.UDPAddr))
	require.ErrorIs(t, err, unix.EADDRINUSE)
	require.NoError(t, next.Remove("a"))
	requireNames(t, m, "b")
	again, err := net.ListenUDP("udp4", first.LocalAddr().(*net.UDPAddr))
	require.NoError(t, err, "nobody has a copy")
	require.NoError(t, again.Close())
	require.ErrorIs(t, inherited["a"][0].Control(func(uintptr) {}), os.ErrClosed)
	require.NotContains(t, next.Inherited(), "a")
	require.NoError(t, next.Remove("a"), "again")

	require.NoError(t, next.Close())
	require.Empty(t, next.Inherited())
	requireNames(t, m, "b")
}

func TestNamedWithoutAManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/nonexistent")
	n := systemd.NewNamed(nil)
	require.ErrorIs(t, n.Put("a", bind(t, 0)), os.ErrNotExist)
	require.ErrorIs(t, n.Remove("a"), os.ErrNotExist)
}
