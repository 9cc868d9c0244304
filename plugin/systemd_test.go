package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/internal/systemdtest"
	"github.com/portolan/portolan/portmap"
)

// startUnit starts the daemon in a process of its own, as a service of m's whose
// socket unit has ln, or none where that is nil.
func startUnit(t *testing.T, host *netnstest.Host, m *systemdtest.Manager, ln *os.File, socket, stateDir string) *daemonProcess {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	link := filepath.Join(t.TempDir(), programName) // the name that has the test binary be the program
	require.NoError(t, os.Symlink(program, link))
	d := &daemonProcess{socket: socket, cmd: exec.Command(link, "daemon", "--socket", socket, "--state-dir", stateDir, "--ip-forward=false")}
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	require.NoError(t, host.Do(func() error { return m.Start(d.cmd, ln, (*exec.Cmd).Start) }))
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
		if t.Failed() {
			t.Logf("the daemon says:\n%s", &d.log)
		}
	})
	return d
}

func requireSaid(t *testing.T, m *systemdtest.Manager, line string, times int) {
	t.Helper()
	require.Eventually(t, func() bool {
		n := 0
		for _, l := range m.Said() {
			if strings.HasPrefix(l, line) {
				n++
			}
		}
		return n >= times
	}, 20*time.Second, 5*time.Millisecond, "want %d times %s: %q", times, line, m.Said())
}

// unitSocket is what a socket unit listens on.
func unitSocket(t *testing.T, path string) *os.File {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	f, err := ln.File()
	require.NoError(t, err)
	ln.SetUnlinkOnClose(false)
	require.NoError(t, ln.Close())
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// The socket is systemd's: whoever connects while there is no daemon waits for one,
// after an orderly end and after SIGKILL.
func TestTheSocketOfASocketUnit(t *testing.T) {
	m, host, dir := systemdtest.New(t), netnstest.NewHost(t), shortDir(t)
	path := filepath.Join(dir, "portolan.sock")
	ln := unitSocket(t, path)
	for i, end := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM} {
		asked := make(chan error, 1)
		go ask(t.Context(), path, asked) // nobody is there yet
		d := startUnit(t, host, m, ln, path, filepath.Join(dir, "state"))
		requireSaid(t, m, "READY=1", i+1)
		select {
		case err := <-asked:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			require.Fail(t, "no answer")
		}
		require.NoError(t, d.cmd.Process.Signal(end))
		_ = d.cmd.Wait()
		require.FileExists(t, path, "it is not the daemon's to remove")
	}
	said := m.Said()
	assert.Equal(t, "STATUS=restoring state", said[0])
	assert.Contains(t, said, "STATUS=0 ports of 0 endpoints")
	requireSaid(t, m, "STOPPING=1", 2)
}

func ask(ctx context.Context, socket string, asked chan<- error) {
	_, err := findDaemon(ctx, socket)
	asked <- err
}

func TestASocketUnitForAnotherPath(t *testing.T) {
	m, host, dir := systemdtest.New(t), netnstest.NewHost(t), shortDir(t)
	ln := unitSocket(t, filepath.Join(dir, "unit.sock"))
	d := startUnit(t, host, m, ln, filepath.Join(dir, "p.sock"), filepath.Join(dir, "state"))
	require.Error(t, d.cmd.Wait())
	assert.Contains(t, d.log.String(), "portolan daemon: systemd listens on "+dir+"/unit.sock (portolan.socket), and --socket is "+dir+"/p.sock: make them the same")
}

// A watchdog hears of a daemon that works, and of no other.
func TestWatchdog(t *testing.T) {
	m := systemdtest.New(t)
	t.Setenv("NOTIFY_SOCKET", m.Address())
	t.Setenv("WATCHDOG_USEC", "100000")
	every, err := watchdogEvery()
	require.NoError(t, err)
	require.Equal(t, 25*time.Millisecond, every)

	d := startDaemon(t)
	requireSaid(t, m, "WATCHDOG=1", 3)
	d.stop(t)
	tell(slog.New(slog.DiscardHandler), "STATUS=it has ended") // after all that it said
	requireSaid(t, m, "STATUS=it has ended", 1)
	pings := func() (n int) {
		for _, l := range m.Said() {
			if l == "WATCHDOG=1" {
				n++
			}
		}
		return n
	}
	before := pings()
	var well health
	well.lose([]string{"a port"}) // a restart does not bring it back
	path := filepath.Join(shortDir(t), "p.sock")
	dog := watchdog{path, 5 * time.Second, &well, slog.New(slog.DiscardHandler)}
	require.ErrorIs(t, dog.tell(), os.ErrNotExist)
	requireSaid(t, m, "WATCHDOG=1", before+1)

	ln, err := listenSocket(path, ownerOnly)
	require.NoError(t, err)
	defer ln.Close()
	dog.within = 50 * time.Millisecond
	require.ErrorContains(t, dog.tell(), "systemd is going to restart this daemon: ", "who is asked does not answer")
	go func() { _ = http.Serve(ln, withHealth(http.NotFoundHandler(), &well)) }()
	dog.within = 5 * time.Second
	require.NoError(t, dog.tell())
	requireSaid(t, m, "WATCHDOG=1", before+2)
	well.note("look", taskHealth{since: time.Now().Add(-time.Hour)})
	require.ErrorContains(t, dog.tell(), "systemd is going to restart this daemon: look: no end for 1h0m")
	tell(dog.log, "STATUS=and so on")
	requireSaid(t, m, "STATUS=and so on", 1)
	assert.Equal(t, before+2, pings())
}

// What systemctl status shows says what is wrong, and is said once.
func TestStatusIsToldWhenItChanges(t *testing.T) {
	m := systemdtest.New(t)
	t.Setenv("NOTIFY_SOCKET", m.Address())
	st, err := store.Open(t.TempDir(), nil)
	require.NoError(t, err)
	defer st.Close()
	ms, err := portmap.ParseMapping("10000-10009->10000-10009/udp")
	require.NoError(t, err)
	var well health
	word := told{log: slog.New(slog.DiscardHandler)}
	well.lose([]string{"a port", "another one"})
	word.status(st, &well)
	requireSaid(t, m, "STATUS=0 ports of 0 endpoints; 3 problems: a port", 1)
	well.lose(nil)
	well.ready(slog.New(slog.DiscardHandler))
	require.NoError(t, st.PutNetwork(store.Network{Network: portmap.Network{ID: "n"}, Phase: store.Done}))
	require.NoError(t, st.PutEndpoint(store.Endpoint{ID: "e", Network: "n", Gateway: true, Mappings: []portmap.Mapping{ms}}))
	word.status(st, &well)
	word.status(st, &well)
	word.status(st, &well)
	requireSaid(t, m, "STATUS=10 ports of 1 endpoint", 1)
	require.Len(t, m.Said(), 3, "%q", m.Said())
}
