package enginetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// demo builds the program that the image is made of.
func demo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "demo")
	build := exec.Command("go", "build", "-o", path, "../../demo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	_, err := Run(build)
	require.NoError(t, err)
	return path
}

func TestEngine(t *testing.T) {
	program := demo(t)
	var dir, host, peer string
	t.Run("works", func(t *testing.T) {
		e := New(t, Options{LiveRestore: true})
		dir, host, peer = e.Dir, e.Host.Path(), e.Peer.Path()
		require.NoError(t, e.Load("demo", program))
		_, err := e.Docker("run", "-d", "--name", "c1", "-p", "7000:7000/udp", "demo", "echo", "-udp", "7000")
		require.NoError(t, err)

		ask := func() (string, error) {
			return Run(e.Peer.Command(program, "send", "udp", HostIPv4+":7000", "hello"))
		}
		answered := func() error { _, err := ask(); return err }
		require.NoError(t, Poll(10*time.Second, answered))
		answer, err := ask()
		require.NoError(t, err)
		assert.Regexp(t, `^7000 198\.51\.100\.2:\d+ hello$`, answer)

		require.NoError(t, e.Stop(), "with live-restore the container stays")
		answer, err = Run(exec.Command("pgrep", "-f", e.Dir+"/containerd.sock"))
		require.NoError(t, err)
		assert.NotEmpty(t, answer)
		require.NoError(t, e.Start())
		require.NoError(t, Poll(10*time.Second, answered))

		require.NoError(t, e.Kill())
		require.NoError(t, e.Start())
		running, err := e.Docker("ps", "--format", "{{.Names}}")
		require.NoError(t, err)
		assert.Equal(t, "c1", running)
	})
	for _, path := range []string{dir, host, peer} {
		assert.NoFileExists(t, path)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	require.NoError(t, err)
	assert.NotContains(t, string(mounts), dir)
	assert.NoError(t, Poll(10*time.Second, func() error {
		if left, _ := exec.Command("pgrep", "-af", dir).Output(); len(left) > 0 { // status 1 means none
			return fmt.Errorf("left: %s", left)
		}
		return nil
	}))
}

// An engine that dies with its containers alive leaves none of them.
func TestEngineKilled(t *testing.T) {
	program := demo(t)
	var pid string
	t.Run("killed", func(t *testing.T) {
		e := New(t, Options{LiveRestore: true})
		require.NoError(t, e.Load("demo", program))
		_, err := e.Docker("run", "-d", "--name", "c1", "demo", "sleep")
		require.NoError(t, err)
		pid, err = e.Docker("inspect", "--format", "{{.State.Pid}}", "c1")
		require.NoError(t, err)
		require.NoError(t, e.Kill())
	})
	require.NotEmpty(t, pid)
	assert.NoError(t, Poll(10*time.Second, func() error {
		if _, err := os.Stat("/proc/" + pid); err == nil {
			return fmt.Errorf("process %s is still there", pid)
		}
		return nil
	}))
}

func TestSnapshot(t *testing.T) {
	e := New(t, Options{})
	before, err := e.Host.Take()
	require.NoError(t, err)
	change := func(args ...string) {
		t.Helper()
		_, err := e.Exec(args[0], args[1:]...)
		require.NoError(t, err)
	}
	again, err := e.Host.Take()
	require.NoError(t, err)
	assert.Empty(t, Diff(before, again), "nothing has changed")

	change("iptables", "-I", "FORWARD", "-j", "ACCEPT")
	change("nft", "add", "table", "inet", "left")
	change("ip", "link", "add", "left0", "type", "bridge")
	change("sysctl", "-qw", "net.ipv6.conf.lo.accept_ra=2")
	p, err := Start("demo", filepath.Join(t.TempDir(), "log"), e.Command(demo(t), "echo", "-udp", "7777"))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.Stop(syscall.SIGTERM, 5*time.Second)) })
	require.NoError(t, Poll(5*time.Second, func() error {
		_, err := Run(e.Command("grep", "-q", "udp ports", p.Log))
		return err
	}))

	after, err := e.Host.Take()
	require.NoError(t, err)
	diff := Diff(before, after)
	for _, want := range []string{
		"+ nft list ruleset: table inet left {",
		"+ iptables-save: -A FORWARD -j ACCEPT",
		"+ devices: left0 bridge",
		"+ sysctls: ipv6/conf/lo/accept_ra = 2",
		"- sysctls: ipv6/conf/lo/accept_ra = 1",
		"+ sockets: udp ",
	} {
		assert.Contains(t, diff, want)
	}
}

func TestStopReportsTheExitStatus(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := Start("sh", log, exec.Command("sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"))
	require.NoError(t, err)
	require.NoError(t, Poll(5*time.Second, func() error { return exec.Command("grep", "-q", "ready", log).Run() }))
	require.ErrorContains(t, p.Stop(syscall.SIGTERM, 5*time.Second), "exit status 3")
	assert.Equal(t, "bye", p.Tail(1))
	assert.False(t, p.Alive())

	p, err = Start("sleep", log, exec.Command("sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"))
	require.NoError(t, err)
	require.NoError(t, Poll(5*time.Second, func() error { return exec.Command("grep", "-q", "deaf", log).Run() }))
	require.ErrorContains(t, p.Stop(syscall.SIGTERM, 100*time.Millisecond), "still there")
}
