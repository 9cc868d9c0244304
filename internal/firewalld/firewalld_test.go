package firewalld

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>
`

// machine has a system bus and a configuration of firewalld of its own.
type machine struct {
	t         *testing.T
	dir       string
	firewalld *exec.Cmd
	log       logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (m *machine) logger() *slog.Logger { return slog.New(slog.NewTextHandler(&m.log, nil)) }

// newMachine starts the bus.
func newMachine(t *testing.T) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "firewalld-") // t.TempDir is too long for a socket's path
	require.NoError(t, err)
	m := &machine{t: t, dir: dir}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+m.path("bus"))
	require.NoError(t, os.WriteFile(m.path("bus.conf"), fmt.Appendf(nil, busConfig, m.path("bus")), 0o600))
	m.start("dbus-daemon", "--nofork", "--config-file="+m.path("bus.conf"))
	require.Eventually(t, func() bool { _, err := os.Stat(m.path("bus")); return err == nil }, 20*time.Second, 10*time.Millisecond)
	m.run("cp", "-a", "/etc/firewalld", m.path("etc"))
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) start(args ...string) *exec.Cmd {
	m.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	require.NoError(m.t, cmd.Start())
	m.t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(m.t, err, "%s: %s", strings.Join(args, " "), out)
	return strings.TrimSpace(string(out))
}

func (m *machine) startFirewalld() {
	m.t.Helper()
	m.firewalld = m.start("firewalld", "--nofork", "--nopid", "--system-config", m.path("etc"), "--log-file", m.path("log"))
	require.Eventually(m.t, func() bool { return exec.Command("firewall-cmd", "--state").Run() == nil }, 60*time.Second, 50*time.Millisecond)
}

func (m *machine) stopFirewalld() {
	m.t.Helper()
	require.NoError(m.t, m.firewalld.Process.Signal(syscall.SIGTERM))
	_ = m.firewalld.Wait() // its exit status is its own affair
}

// zone is firewalld's word on an interface.
func (m *machine) zone(name string) string {
	out, err := exec.Command("firewall-cmd", "--get-zone-of-interface="+name).CombinedOutput()
	if err != nil {
		return "none"
	}
	return strings.TrimSpace(string(out))
}

func (m *machine) eventually(name, zone string) {
	m.t.Helper()
	require.Eventually(m.t, func() bool { return m.zone(name) == zone }, 30*time.Second, 20*time.Millisecond,
		"%s is in zone %s, and not in %s: %s", name, m.zone(name), zone, &m.log)
}

// follow runs z until the test ends.
func (m *machine) follow(z *Zones) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- z.Run(ctx) }()
	m.t.Cleanup(func() {
		cancel()
		assert.NoError(m.t, <-done)
		assert.NoError(m.t, z.Close())
		goleak.VerifyNone(m.t)
	})
}

func TestZonesFollowFirewalld(t *testing.T) {
	m := newMachine(t)
	z := Open(Config{Log: m.logger()})
	m.follow(z)
	require.NoError(t, z.Add("pl0"), "there is no firewalld")
	m.startFirewalld()
	m.eventually("pl0", "trusted")
	require.NoError(t, z.Add("pl1"))
	assert.Equal(t, "trusted", m.zone("pl1"))

	m.run("firewall-cmd", "--zone=trusted", "--remove-interface=pl0")
	m.run("firewall-cmd", "--reload")
	m.eventually("pl0", "trusted")
	m.run("firewall-cmd", "--complete-reload")
	m.eventually("pl0", "trusted")
	m.eventually("pl1", "trusted")
	m.stopFirewalld()
	require.NoError(t, z.Add("pl2"), "it is away")
	require.NoError(t, z.Remove("pl2"))
	m.startFirewalld()
	m.eventually("pl0", "trusted")
	m.eventually("pl1", "trusted")
	assert.Equal(t, "none", m.zone("pl2"))

	require.NoError(t, z.Remove("pl0"))
	require.NoError(t, z.Remove("pl0"), "again")
	assert.Equal(t, "none", m.zone("pl0"))
	m.run("firewall-cmd", "--reload")
	m.eventually("pl1", "trusted")
	assert.Equal(t, "none", m.zone("pl0"))
	assert.NotContains(t, m.run("firewall-cmd", "--permanent", "--zone=trusted", "--list-interfaces"), "pl1")
	assert.Contains(t, m.log.String(), "put an interface into a zone of firewalld")
}

// Docker's zone is preferred, and another one that somebody has chosen stays.
func TestZonesOfOthers(t *testing.T) {
	m := newMachine(t)
	m.startFirewalld()
	m.run("firewall-cmd", "--permanent", "--new-zone=docker")
	m.run("firewall-cmd", "--permanent", "--zone=docker", "--set-target=ACCEPT")
	m.run("firewall-cmd", "--permanent", "--zone=dmz", "--add-interface=pl1")
	m.run("firewall-cmd", "--reload")
	z := Open(Config{Log: m.logger()})
	m.follow(z)
	require.NoError(t, z.Add("pl0"))
	require.NoError(t, z.Add("pl1"))
	assert.Equal(t, "docker", m.zone("pl0"))
	assert.Equal(t, "dmz", m.zone("pl1"))
	assert.Contains(t, m.log.String(), `already" interface=pl1 zone=dmz`)
	require.NoError(t, z.Remove("pl1"))
	assert.Equal(t, "dmz", m.zone("pl1"))

	// The line for the managed plugin does the same.
	m.run("sh", "-c", Command("pl2"))
	assert.Equal(t, "docker", m.zone("pl2"))
	m.run("firewall-cmd", "--complete-reload")
	m.eventually("pl2", "docker")
}

// Who repairs waits for a firewalld that is busy, but not for ever, and not
// again and again.
func TestSettle(t *testing.T) {
	m := newMachine(t)
	z := Open(Config{Log: m.logger()})
	m.follow(z)
	z.Settle() // there is no firewalld
	m.startFirewalld()
	z.Settle()
	settled := make(chan bool, 1)
	settle := func() { z.Settle(); settled <- true }

	require.NoError(t, m.firewalld.Process.Signal(syscall.SIGSTOP))
	go settle()
	assert.Never(t, func() bool { return len(settled) > 0 }, 500*time.Millisecond, 10*time.Millisecond)
	require.NoError(t, m.firewalld.Process.Signal(syscall.SIGCONT))
	<-settled
	assert.NotContains(t, m.log.String(), "answers nobody")

	require.NoError(t, m.firewalld.Process.Signal(syscall.SIGSTOP))
	z.settleWait = 100 * time.Millisecond
	z.Settle()
	assert.Contains(t, m.log.String(), "firewalld answers nobody")
	z.settleWait = time.Hour
	z.Settle()
	require.NoError(t, m.firewalld.Process.Signal(syscall.SIGCONT))
	require.Eventually(t, func() bool { return exec.Command("firewall-cmd", "--state").Run() == nil }, 20*time.Second, 10*time.Millisecond)
	z.Settle()
}

// One caller waits for a firewalld that answers nobody; all are served when it does.
func TestAddWhereFirewalldIsDeaf(t *testing.T) {
	m := newMachine(t)
	z := Open(Config{Log: m.logger()})
	require.NoError(t, z.Add("pl0"), "there is no firewalld")
	m.startFirewalld()
	m.follow(z) // which asks at once, and is not to be the one that waits
	require.Eventually(t, func() bool { return strings.Contains(m.log.String(), "put an interface into a zone") }, 20*time.Second, time.Millisecond)
	require.NoError(t, m.firewalld.Process.Signal(syscall.SIGSTOP))
	require.ErrorIs(t, z.Add("pl1"), context.DeadlineExceeded)
	require.NoError(t, z.Add("pl2"), "it does not ask")
	require.NoError(t, m.firewalld.Process.Signal(syscall.SIGCONT))
	m.eventually("pl1", "trusted")
	m.eventually("pl2", "trusted")
}

// Without a bus nothing happens, but for a hint where firewalld has rules.
func TestZonesWithoutABus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere")
	m := &machine{t: t}
	present := false
	z := Open(Config{Log: m.logger(), Present: func() bool { return present }})
	m.follow(z)
	require.NoError(t, z.Add("pl0"))
	assert.Empty(t, m.log.String())
	present = true
	require.NoError(t, z.Add("pl0"))
	require.NoError(t, z.Add("pl0"))
	assert.Equal(t, 1, strings.Count(m.log.String(), Command("pl0")))
	require.NoError(t, z.Remove("pl0"))
}

// A bus that accepts and says nothing holds nobody up.
func TestZonesOfADeafBus(t *testing.T) {
	dir, err := os.MkdirTemp("", "bus-")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer syscall.Close(fd)
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: filepath.Join(dir, "bus")}))
	require.NoError(t, syscall.Listen(fd, 1))
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(dir, "bus"))
	opened := make(chan *Zones)
	go func() { opened <- Open(Config{}) }()
	select {
	case z := <-opened:
		require.NoError(t, z.Add("pl0"))
		require.NoError(t, z.Close())
	case <-time.After(20 * time.Second):
		require.Fail(t, "it waits")
	}
}
