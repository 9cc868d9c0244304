package e2e

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// nobody is a user without any right.
const nobody = 65534

// asNobody is f as another user. It is for a thread that ends with it: the
// calls of package unix would be for all threads.
func asNobody(f func() error) func() error {
	return func() error {
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS},
			{unix.SYS_SETRESGID, nobody, nobody, nobody},
			{unix.SYS_SETRESUID, nobody, nobody, nobody},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				return errno
			}
		}
		return f()
	}
}

// Neither the daemon nor the shim has anything to say to another user, and none
// can read what the daemon keeps.
func TestClosedSockets(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.export(&testscript.Env{Values: map[any]any{}})
	require.NoError(t, os.Chmod(h.engine.Dir, 0o755)) // as /run is
	require.NoError(t, h.startDaemon("nftables"))
	require.NoError(t, h.startShim())

	dial := func(path string) func() error {
		return func() error {
			c, err := net.Dial("unix", path)
			if err != nil {
				return err
			}
			return c.Close()
		}
	}
	// A socket for everybody beside each of them is within reach.
	for _, path := range []string{h.socket(), h.shimSocket()} {
		require.NoError(t, dial(path)(), path)
		require.ErrorIs(t, h.engine.Host.Do(asNobody(dial(path))), syscall.EACCES, path)
		public := filepath.Join(filepath.Dir(path), "public.sock")
		ln, err := net.Listen("unix", public)
		require.NoError(t, err)
		require.NoError(t, os.Chmod(public, 0o666))
		require.NoError(t, h.engine.Host.Do(asNobody(dial(public))), public)
		require.NoError(t, ln.Close())
	}

	require.ErrorIs(t, h.engine.Host.Do(asNobody(func() error {
		_, err := os.ReadDir(h.stateDir())
		return err
	})), syscall.EACCES)
	files, err := os.ReadDir(h.stateDir())
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, f := range files {
		info, err := f.Info()
		require.NoError(t, err)
		require.Zero(t, info.Mode().Perm()&0o077, "%s is for its owner alone", f.Name())
	}

	// The lock of the network namespace has no permissions; it tells root alone
	// which daemon has it.
	line := ""
	ask := func() error {
		c, err := net.Dial("unix", "@github.com/portolan/portolan/daemon")
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		b, err := io.ReadAll(c)
		line = string(b)
		return err
	}
	require.NoError(t, h.engine.Host.Do(ask))
	require.Contains(t, line, h.socket())
	require.NoError(t, h.engine.Host.Do(asNobody(ask)))
	require.Empty(t, line)
}
