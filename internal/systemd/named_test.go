package systemd_test

import (
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/systemd"
	"github.com/portolan/portolan/internal/systemdtest"
)

// openNamed is what a process that a manager has started finds.
func openNamed(t *testing.T, m *systemdtest.Manager) *systemd.Named {
	t.Helper()
	n := systemd.NewNamed(m.Inherit(t))
	t.Cleanup(func() { _ = n.Close() })
	return n
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
	m.RequireNames(t, "a", "b")

	// The next process has them, also when this one's are closed.
	require.NoError(t, first.Close())
	next := openNamed(t, m)
	inherited := next.Inherited()
	require.Len(t, inherited, 2)
	require.Len(t, inherited["a"], 1)
	_, err := net.ListenUDP("udp4", first.LocalAddr().(*net.UDPAddr))
	require.ErrorIs(t, err, unix.EADDRINUSE)
	require.NoError(t, next.Remove("a"))
	m.RequireNames(t, "b")
	again, err := net.ListenUDP("udp4", first.LocalAddr().(*net.UDPAddr))
	require.NoError(t, err, "nobody has a copy")
	require.NoError(t, again.Close())
	require.ErrorIs(t, inherited["a"][0].Control(func(uintptr) {}), os.ErrClosed)
	require.NotContains(t, next.Inherited(), "a")
	require.NoError(t, next.Remove("a"), "again")

	require.NoError(t, next.Close())
	require.Empty(t, next.Inherited())
	m.RequireNames(t, "b")
}

func TestNamedWithoutAManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/nonexistent")
	n := systemd.NewNamed(nil)
	require.ErrorIs(t, n.Put("a", bind(t, 0)), os.ErrNotExist)
	require.ErrorIs(t, n.Remove("a"), os.ErrNotExist)
}
