package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/netnstest"
)

func TestASecondDaemonIsToldOfTheFirst(t *testing.T) {
	first, err := lockNamespace("/run/a.sock", "/var/lib/a")
	require.NoError(t, err)
	defer first.Close()

	_, err = lockNamespace("/run/b.sock", "/var/lib/b")
	require.EqualError(t, err, fmt.Sprintf(
		"another portolan daemon serves this network namespace: pid %d, socket /run/a.sock, state /var/lib/a", os.Getpid()))

	require.NoError(t, first.Close())
	require.NoError(t, first.Close(), "twice")
	_, err = namespaceHolder()
	require.ErrorIs(t, err, errNoHolder)
	second, err := lockNamespace("/run/b.sock", "/var/lib/b")
	require.NoError(t, err)
	require.NoError(t, second.Close())
}

func TestAnotherNamespaceHasAnotherDaemon(t *testing.T) {
	first, err := lockNamespace("/run/a.sock", "/var/lib/a")
	require.NoError(t, err)
	defer first.Close()
	require.NoError(t, netnstest.NewHost(t).Do(func() error {
		second, err := lockNamespace("/run/b.sock", "/var/lib/b")
		if err != nil {
			return err
		}
		return second.Close()
	}))
}

// Abstract names have no permissions: a user who is not root may take it first,
// and keeps nobody from starting.
func TestANameTakenByAnotherUserIsNoDaemon(t *testing.T) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	asNobody(t, func() error {
		return errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: namespaceName}), unix.Listen(fd, 1))
	})
	_, err = namespaceHolder()
	require.ErrorContains(t, err, "held by uid 65534")
	require.ErrorContains(t, err, "no portolan daemon")
	l, err := lockNamespace("/run/a.sock", "/var/lib/a")
	require.NoError(t, err)
	require.Contains(t, l.taken, "held by uid 65534")
	require.NoError(t, l.Close())
}

func TestOtherUsersAreToldNothing(t *testing.T) {
	l, err := lockNamespace("/run/a.sock", "/var/lib/a")
	require.NoError(t, err)
	defer l.Close()
	var conn net.Conn
	asNobody(t, func() error {
		conn, err = net.Dial("unix", namespaceName)
		return err
	})
	defer conn.Close()
	n, err := conn.Read(make([]byte, 100))
	assert.Zero(t, n)
	assert.Error(t, err)
}

// asNobody runs f on a thread of another effective user, which ends with it.
// (syscall.Seteuid would change all threads, the daemon's too.)
func asNobody(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go onNobodysThread(f, done)
	require.NoError(t, <-done)
}

func onNobodysThread(f func() error, done chan<- error) {
	runtime.LockOSThread() // and never unlocked: the runtime ends the thread
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 65534, keep); errno != 0 {
		done <- errno
		return
	}
	done <- f()
}
