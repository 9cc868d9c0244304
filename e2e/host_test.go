package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/enginetest"
	"github.com/portolan/portolan/internal/systemdtest"
)

// image is the demo's, in every private engine.
const image = "portolan-demo"

// driver is the name by which the engine knows the daemon.
const driver = "portolan"

// host is what a script runs on: a private engine and a Portolan daemon beside
// it in the same namespace, as systemd would run it.
type host struct {
	t      *testing.T
	engine *enginetest.Engine
	bin    string // wrappers for this host, first in the scripts' PATH
	vars   *testscript.Env
	mapper string
	files  string               // open files that a daemon may have, "" for any number
	unit   *systemdtest.Manager // that daemons are started by, nil for none
	daemon *enginetest.Process
	shim   *enginetest.Process
	before enginetest.Snapshot // before the first daemon
	named  map[string]enginetest.Snapshot

	firewalls firewalls
}

func newHost(t *testing.T) *host {
	e := enginetest.New(t, enginetest.Options{Args: []string{"--insecure-registry", "127.0.0.1:5000"}})
	h := &host{
		t: t, engine: e,
		bin:   filepath.Join(e.Dir, "bin"),
		named: map[string]enginetest.Snapshot{},
	}
	require.NoError(t, e.Load(image, filepath.Join(programs, "demo")))
	require.NoError(t, h.writeWrappers())
	var err error
	h.before, err = e.Host.Take()
	require.NoError(t, err)
	t.Cleanup(h.leavesNothing)
	return h
}

// writeWrappers makes the programs with which scripts say where a command runs.
func (h *host) writeWrappers() error {
	if err := os.MkdirAll(h.bin, 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"host":      "nsenter --net=" + h.engine.Host.Path() + " -- \"$@\"",
		"mounted":   "nsenter --mount=" + h.engine.Mounts() + " -- \"$@\"",
		"neighbour": "nsenter --net=" + h.engine.Peer.Path() + " -- \"$@\"",
		"dial":      "demo send -timeout 1s \"$@\"",
	} {
		if err := os.WriteFile(filepath.Join(h.bin, name), []byte("#!/bin/sh\nexec "+text+"\n"), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (h *host) socket() string { return filepath.Join(h.engine.PluginDir(), driver+".sock") }

func (h *host) stateDir() string { return filepath.Join(h.engine.Dir, "portolan") }

// logFile has what all daemons of the script have said.
func (h *host) logFile() string { return filepath.Join(h.engine.Dir, "portolan.log") }

// export sets the scripts' environment.
func (h *host) export(env *testscript.Env) {
	vars := map[string]string{
		"PATH":               strings.Join([]string{h.bin, programs, enginetest.Path()}, string(os.PathListSeparator)),
		"DOCKER_HOST":        h.engine.Address(),
		"DRIVER":             driver,
		"PORTOLAN_SOCKET":    h.socket(),
		"PORTOLAN_STATE_DIR": h.stateDir(),
		"LOG":                h.logFile(),
		"SHIM":               "unix://" + h.shimSocket(),
		"SHIMLOG":            h.shimLog(),
		"IMAGE":              image,
		"HOST4":              enginetest.HostIPv4,
		"HOST6":              enginetest.HostIPv6,
		"HOSTLL":             enginetest.HostLinkLocal + "%" + enginetest.HostInterface,
		"PEERLL":             enginetest.HostLinkLocal + "%" + enginetest.PeerInterface,
		"PEER4":              enginetest.PeerIPv4,
		"PEER6":              enginetest.PeerIPv6,
		"BROADCAST":          enginetest.BroadcastIPv4,
		"GORACE":             "atexit_sleep_ms=0",
	}
	h.vars = env
	for name, value := range vars {
		h.setenv(name, value)
	}
	h.setenv("DBUS_SYSTEM_BUS_ADDRESS", h.engine.BusAddress())
	env.Values[hostKey{}] = h
}

// setenv sets a variable of the script before it starts.
func (h *host) setenv(name, value string) { h.vars.Setenv(name, value) }

// command is a program as a script would run it, found in the scripts' PATH.
func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.Command("env", args...)
	cmd.Env = append(os.Environ(), h.vars.Vars...)
	return cmd
}

// commandOf is command with those variables that scripts change.
func (h *host) commandOf(ts *testscript.TestScript, args ...string) *exec.Cmd {
	cmd := h.command(args...)
	for _, name := range []string{"DOCKER_HOST", "PORTOLAN_SOCKET"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	return cmd
}

// hostKey is the key of a script's host.
type hostKey struct{}

// startDaemon starts the daemon as a systemd unit would. An empty mapper means
// the one it had before.
func (h *host) startDaemon(mapper string, flags ...string) error {
	if mapper != "" {
		h.mapper = mapper
	}
	args := []string{"host"}
	if h.files != "" {
		args = append(args, "prlimit", "--nofile="+h.files) // soft and hard
	}
	args = append(args, "portolan", "daemon", "--socket", h.socket(), "--state-dir", h.stateDir(),
		"--mapper", h.mapper, "--log-level", "debug")
	args = append(args, flags...)
	start := func(cmd *exec.Cmd) (err error) {
		h.daemon, err = enginetest.Start("portolan", h.logFile(), cmd)
		return err
	}
	cmd, err := h.command(args...), error(nil)
	if h.unit != nil {
		err = h.unit.Start(cmd, nil, start)
	} else {
		err = start(cmd)
	}
	if err != nil {
		return err
	}
	return enginetest.Poll(20*time.Second, func() error {
		c, err := net.Dial("unix", h.socket())
		if err == nil {
			return c.Close()
		}
		if !h.daemon.Alive() {
			return fmt.Errorf("the daemon has ended: %s", h.daemon.Tail(5))
		}
		return err
	})
}

// reboot is what a machine goes through that loses its power, without a daemon.
// The engine has to be started.
func (h *host) reboot() error {
	if err := h.engine.Reboot(); err != nil {
		return err
	}
	return h.writeWrappers() // they run beside containerd, which is another process now
}

// stopDaemon stops it in order, which takes 5 s at most; twice that is for a
// busy machine.
func (h *host) stopDaemon() error { return h.daemon.Stop(syscall.SIGTERM, 10*time.Second) }

// leavesNothing ends every script: containers and networks go, then the daemon,
// and after portolan cleanup the host is as it was before.
func (h *host) leavesNothing() {
	t := h.t
	h.raceless()
	if t.Failed() {
		if h.daemon != nil {
			t.Logf("the daemon said last:\n%s", h.daemon.Tail(60))
		}
		// Where things are is anybody's guess. An engine without its driver waits
		// long for it, so that nobody is asked to tidy up.
		_ = h.engine.Kill()
		if h.daemon != nil {
			_ = h.daemon.Stop(syscall.SIGKILL, 10*time.Second)
		}
		_ = os.Remove(h.socket())
		return
	}
	if h.daemon == nil {
		return
	}
	h.removeAll()
	after := h.take()
	assert.Empty(t, enginetest.Diff(only(h.before, "sockets", "devices"), only(after, "sockets", "devices")),
		"without networks there is nothing but the daemon")
	ls, err := enginetest.Run(h.command("portolan", "ls", "--json"))
	assert.NoError(t, err)
	assert.JSONEq(t, "[]", ls)

	assert.NoError(t, h.stopDaemon())
	_, err = enginetest.Run(h.command("host", "portolan", "cleanup", "--state-dir", h.stateDir()))
	assert.NoError(t, err)
	assert.Empty(t, enginetest.Diff(h.before, h.take()), "cleanup leaves the network as it was")
	assert.NoDirExists(t, h.stateDir())
	assert.NoFileExists(t, h.socket())
}

// raceless looks for what the race detector of daemon and shim has said.
func (h *host) raceless() {
	for _, file := range []string{h.logFile(), h.shimLog()} {
		text, err := os.ReadFile(file)
		if _, race, found := strings.Cut(string(text), "WARNING: DATA RACE"); err == nil && found {
			assert.Fail(h.t, "data race", race[:min(len(race), 4000)])
		}
	}
}

// removeAll removes every container and every network that a script may have
// left, with everybody there who has a say in it.
func (h *host) removeAll() {
	t := h.t
	if !h.daemon.Alive() {
		require.NoError(t, h.startDaemon(""))
	}
	if _, err := h.engine.Docker("version"); err != nil {
		require.NoError(t, h.engine.Start())
	}
	containers, err := h.engine.Docker("ps", "-aq")
	require.NoError(t, err)
	if containers != "" {
		_, err = h.engine.Docker(append([]string{"rm", "-f"}, strings.Fields(containers)...)...)
		assert.NoError(t, err)
	}
	networks, err := h.engine.Docker("network", "ls", "-q", "--filter", "type=custom")
	require.NoError(t, err)
	if networks != "" {
		_, err = h.engine.Docker(append([]string{"network", "rm"}, strings.Fields(networks)...)...)
		assert.NoError(t, err)
	}
}

func (h *host) take() enginetest.Snapshot {
	s, err := h.engine.Host.Take()
	require.NoError(h.t, err)
	return s
}

// only is the part of a snapshot that is of the kinds given.
func only(s enginetest.Snapshot, kinds ...string) enginetest.Snapshot {
	part := enginetest.Snapshot{}
	for _, k := range kinds {
		part[k] = s[k]
	}
	return part
}
