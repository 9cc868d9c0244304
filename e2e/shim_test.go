package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
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
)

// What the shim does does not depend on the mapper.
func TestShim(t *testing.T) {
	t.Parallel()
	runShim(t, "testdata/shim")
}

func runShim(t *testing.T, dir string) {
	busybox, err := exec.LookPath("busybox")
	require.NoError(t, err, "Debian's busybox-static has it")
	run(t, dir, func(h *host) error {
		if err := h.engine.Load("busybox", busybox); err != nil {
			return err
		}
		return h.startDaemon("nftables")
	})
}

// shim starts, stops, restarts or kills `portolan shim` on a script's host.
func shim(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: shim start|stop|restart|kill [FLAGS…]")
	}
	h := hostOf(ts)
	stop := func(signal syscall.Signal) { ts.Check(h.shim.Stop(signal, 10*time.Second)) }
	switch args[0] {
	case "start":
		ts.Check(h.startShim(args[1:]...))
	case "restart":
		stop(syscall.SIGTERM)
		ts.Check(h.startShim(args[1:]...))
	case "stop":
		stop(syscall.SIGTERM)
	case "kill":
		stop(syscall.SIGKILL)
	default:
		ts.Fatalf("shim %s: no such command", args[0])
	}
}

func (h *host) shimSocket() string { return filepath.Join(h.engine.Dir, "shim.sock") }

// shimLog has what all shims of the script have said.
func (h *host) shimLog() string { return filepath.Join(h.engine.Dir, "shim.log") }

// startShim starts it as a systemd unit would: it finds a managed plugin by the
// path of the socket that the engine has made.
func (h *host) startShim(flags ...string) error {
	args := append([]string{
		"host", "mounted", "portolan", "shim", "--listen", h.shimSocket(),
		"--engine", strings.TrimPrefix(h.engine.Address(), "unix://"), "--log-level", "debug",
	}, flags...)
	p, err := enginetest.Start("shim", h.shimLog(), h.command(args...))
	if err != nil {
		return err
	}
	if h.shim == nil {
		h.t.Cleanup(h.endShim)
	}
	h.shim = p
	return enginetest.Poll(20*time.Second, func() error {
		c, err := net.Dial("unix", h.shimSocket())
		if err == nil {
			return c.Close()
		}
		if !p.Alive() {
			return fmt.Errorf("the shim has ended: %s", p.Tail(5))
		}
		return err
	})
}

func (h *host) endShim() {
	if h.t.Failed() {
		h.t.Logf("the shim said last:\n%s", h.shim.Tail(40))
	}
	if h.shim.Alive() {
		assert.NoError(h.t, h.shim.Stop(syscall.SIGTERM, 10*time.Second))
	}
}

// answer is what a program had to say.
type answer struct {
	status         int
	stdout, stderr string
}

// both runs a program straight at the engine and by the shim, which must come to
// the same. With -json, what both print is compared but for the ports.
func both(ts *testscript.TestScript, neg bool, args []string) {
	asJSON := len(args) > 0 && args[0] == "-json"
	if asJSON {
		args = args[1:]
	}
	if neg || len(args) == 0 {
		ts.Fatalf("usage: both [-json] PROGRAM ARGS…")
	}
	h := hostOf(ts)
	ask := func(address string) answer {
		var stdout, stderr bytes.Buffer
		cmd := h.command(append([]string{"DOCKER_HOST=" + address}, args...)...)
		cmd.Dir = ts.Getenv("WORK")
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
			ts.Fatalf("%v", err)
		}
		return answer{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	}
	var straight, by answer
	// A second may begin between the two, and containers that are up for one
	// more are listed so; each has seconds of its own.
	for range 20 {
		straight, by = ask(h.engine.Address()), ask("unix://"+h.shimSocket())
		printed := by
		if asJSON {
			straight.stdout, by.stdout = withoutPorts(ts, straight.stdout), withoutPorts(ts, by.stdout)
		}
		if straight == by {
			fmt.Fprint(ts.Stdout(), printed.stdout)
			fmt.Fprint(ts.Stderr(), printed.stderr)
			return
		}
	}
	ts.Fatalf("straight: %+v\nby the shim: %+v", straight, by)
}

// withoutPorts is JSON without what the shim fills in, in one form.
func withoutPorts(ts *testscript.TestScript, text string) string {
	var v any
	ts.Check(json.Unmarshal([]byte(text), &v))
	dropPorts(v)
	b, err := json.Marshal(v)
	ts.Check(err)
	return string(b)
}

func dropPorts(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			dropPorts(e)
		}
	case map[string]any:
		delete(v, "Ports")
		delete(v, "PortMapping")
		for _, e := range v {
			dropPorts(e)
		}
	}
}
