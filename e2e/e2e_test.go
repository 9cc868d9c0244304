// Package e2e tests Portolan with real Docker engines and real packets.
//
// Each script of testdata has an engine, a daemon and a neighbour of its own
// and runs once for each mapper, those of testdata/once with nftables alone;
// commands_test.go has the commands that scripts know beside those of
// testscript. Whatever a script does, at its end nothing may be left.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/enginetest"
)

// programs is the folder of portolan and demo, built from this repository.
var programs string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "e2e-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programs)
		if err := build(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// build makes portolan with the race detector, which leavesNothing asks.
func build() error {
	demo := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(programs, "demo"), "../demo")
	demo.Env = append(os.Environ(), "CGO_ENABLED=0")
	raced := exec.Command("go", "build", "-race", "-trimpath", "-o", filepath.Join(programs, "portolan"), "../plugin")
	for _, cmd := range []*exec.Cmd{demo, raced} {
		if _, err := enginetest.Run(cmd); err != nil {
			return fmt.Errorf("build %s: %w", cmd.Args[len(cmd.Args)-1], err)
		}
	}
	return os.Symlink("portolan", filepath.Join(programs, "portolan-proxy"))
}

func TestNFTables(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"testdata", "testdata/once"} {
		run(t, dir, func(h *host) error { return h.startDaemon("nftables") })
	}
}

func TestIPTables(t *testing.T) {
	t.Parallel()
	run(t, "testdata", func(h *host) error { return h.startDaemon("iptables") })
}

// The managed plugin is what `make plugin` has put into build/plugin.
func TestManaged(t *testing.T) {
	t.Parallel()
	plugin, err := filepath.Abs("../build/plugin")
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(plugin, "config.json"), "make plugin makes it")
	run(t, "testdata/managed", func(h *host) error {
		h.setenv("PLUGIN", plugin)
		h.setenv("PORTOLAN_SOCKET", "") // the engine chooses it
		return nil
	})
}

// An engine may have our proxy in place of docker-proxy, for its own networks.
func TestUserlandProxy(t *testing.T) {
	t.Parallel()
	run(t, "testdata/userland-proxy", func(h *host) error {
		program := filepath.Join(programs, "portolan-proxy")
		h.setenv("PROXY", program)
		h.engine.Args = append(h.engine.Args, "--userland-proxy-path", program)
		return h.engine.Restart()
	})
}

// run runs the scripts of a folder, each on a host of its own that is ready
// after setup.
func run(t *testing.T, dir string, setup func(*host) error) {
	testscript.RunT(scriptT{t}, testscript.Params{
		Dir:                 dir,
		WorkdirRoot:         t.TempDir(), // testscript's own stays where -run leaves scripts out
		Cmds:                commands,
		Condition:           condition,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			h := newHost(env.T().(scriptT).T)
			h.export(env)
			return setup(h)
		},
	})
}

// condition knows [nftables-engine]: Docker's own rules are by its nftables
// backend.
func condition(cond string) (bool, error) {
	if cond != "nftables-engine" {
		return false, fmt.Errorf("unknown condition %q", cond)
	}
	return strings.Contains(os.Getenv("ENGINE_ARGS"), "--firewall-backend=nftables"), nil
}

// scriptT gives Setup the testing.T of its script.
type scriptT struct{ *testing.T }

func (t scriptT) Run(name string, f func(testscript.T)) {
	t.T.Run(name, func(t *testing.T) { f(scriptT{t}) })
}

func (t scriptT) Verbose() bool { return testing.Verbose() }
