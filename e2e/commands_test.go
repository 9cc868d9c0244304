package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/assert"

	"github.com/portolan/portolan/internal/enginetest"
	"github.com/portolan/portolan/internal/systemdtest"
)

// commands are what scripts know beside the commands of testscript and the
// programs docker, portolan, demo, host, neighbour and dial:
//
//	until [!] PROGRAM ARGS…     run it until it succeeds (fails)
//	soon [!] PROGRAM ARGS…      the same, within repairTime
//	daemon start [FLAGS…]       start the daemon; also stop, kill and restart
//	daemon files N              daemons that start from now on may open N files
//	daemon systemd              daemons that start from now on can store sockets
//	daemon stored N             as many are stored now, or soon
//	engine restart              restart dockerd; also start, stop, kill, live-restore
//	machine off                 no power: all that is left is on disk; engine and daemon have to be started
//	shim start [FLAGS…]         start the shim at $SHIM; also stop, restart and kill
//	both [-json] PROGRAM ARGS…  straight and by the shim: the same, but for ports
//	capture VAR PROGRAM ARGS…   set VAR to what it prints
//	hostport VAR NAME PORT      set VAR to the host port of NAME's PORT, as 53/udp
//	ports FILE                  portolan ls has these PORTS, in this order
//	settings NAME FILE          portolan inspect has these NetworkSettings, as JSON
//	firewalld start BACKEND     start a system bus and firewalld; also stop
//	ufw ARGS…                   run ufw with a configuration of the script's own
//	health [PROBLEM]            /Plugin.Health says that all is well, or that
//	snapshot NAME               remember the state of the host's network
//	same NAME                   it is that again
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"until":    until,
	"soon":     soon,
	"daemon":   daemon,
	"engine":   engine,
	"machine":  machine,
	"capture":  capture,
	"hostport": hostport,
	"ports":    ports,
	"settings": settings,
	"snapshot": snapshot,
	"same":     same,
	"shim":     shim,
	"both":     both,

	"firewalld": firewalld,
	"ufw":       ufw,
	"health":    health,
}

// patience is how long scripts wait for what must come.
const patience = 20 * time.Second

func hostOf(ts *testscript.TestScript) *host { return ts.Value(hostKey{}).(*host) }

// arguments checks their number and that nobody wrote "!".
func arguments(ts *testscript.TestScript, neg bool, args []string, usage string) {
	if neg || len(args) != len(strings.Fields(usage)) {
		ts.Fatalf("usage: %s", usage)
	}
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	poll(ts, neg, args, "until", patience)
}

func poll(ts *testscript.TestScript, neg bool, args []string, name string, within time.Duration) {
	fails := len(args) > 0 && args[0] == "!"
	if fails {
		args = args[1:]
	}
	if neg || len(args) == 0 {
		ts.Fatalf("usage: %s [!] PROGRAM ARGS…", name)
	}
	h := hostOf(ts)
	var stdout, stderr strings.Builder
	err := enginetest.Poll(within, func() error {
		stdout.Reset()
		stderr.Reset()
		cmd := h.commandOf(ts, args...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = ts.Getenv("WORK"), &stdout, &stderr
		err := cmd.Run()
		switch {
		case !fails:
			return err
		case err == nil:
			return errors.New("it succeeds still")
		}
		return nil
	})
	fmt.Fprint(ts.Stdout(), stdout.String())
	fmt.Fprint(ts.Stderr(), stderr.String())
	if err != nil {
		ts.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
}

func daemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: daemon start|stop|kill|restart|files|systemd|stored [FLAGS…]")
	}
	h := hostOf(ts)
	switch args[0] {
	case "files":
		arguments(ts, neg, args, "files N")
		h.files = args[1]
	case "systemd":
		h.unit = systemdtest.New(h.t)
	case "stored":
		arguments(ts, neg, args, "stored N")
		ts.Check(enginetest.Poll(patience, func() error {
			if n := fmt.Sprint(h.unit.Stored()); n != args[1] {
				return fmt.Errorf("%s sockets are stored, want %s", n, args[1])
			}
			return nil
		}))
	case "start":
		ts.Check(h.startDaemon("", args[1:]...))
	case "stop":
		ts.Check(h.stopDaemon())
	case "kill":
		ts.Check(h.daemon.Stop(syscall.SIGKILL, patience))
	case "restart":
		ts.Check(h.stopDaemon())
		ts.Check(h.startDaemon("", args[1:]...))
	default:
		ts.Fatalf("daemon %s: unknown", args[0])
	}
}

func engine(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, "ACTION")
	e := hostOf(ts).engine
	switch args[0] {
	case "start":
		ts.Check(e.Start())
	case "stop":
		ts.Check(e.Stop())
	case "kill":
		ts.Check(e.Kill())
	case "restart":
		ts.Check(e.Restart())
	case "live-restore":
		e.LiveRestore = true
		ts.Check(e.Restart())
	default:
		ts.Fatalf("engine %s: unknown", args[0])
	}
}

func machine(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, "off")
	h := hostOf(ts)
	ts.Check(h.daemon.Stop(syscall.SIGKILL, patience))
	ts.Check(h.reboot())
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: capture VAR PROGRAM ARGS…")
	}
	out, err := hostOf(ts).commandOf(ts, args[1:]...).Output()
	ts.Check(err)
	ts.Setenv(args[0], strings.TrimSpace(string(out)))
}

// networkSettings are those of portolan inspect NAME, an element an endpoint.
func networkSettings(ts *testscript.TestScript, name string) []json.RawMessage {
	out, err := hostOf(ts).commandOf(ts, "mounted", "portolan", "inspect", name).Output()
	ts.Check(err)
	var found []struct{ NetworkSettings json.RawMessage }
	ts.Check(json.Unmarshal(out, &found))
	var all []json.RawMessage
	for _, endpoint := range found {
		all = append(all, endpoint.NetworkSettings)
	}
	return all
}

func hostport(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, "VAR NAME PORT")
	all := networkSettings(ts, args[1])
	for _, text := range all {
		var s struct {
			Ports map[string][]struct{ HostIP, HostPort string }
		}
		ts.Check(json.Unmarshal(text, &s))
		if bindings := s.Ports[args[2]]; len(bindings) > 0 {
			ts.Setenv(args[0], bindings[0].HostPort)
			return
		}
	}
	ts.Fatalf("hostport: %s does not publish %s: %s", args[1], args[2], all)
}

func settings(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, "NAME FILE")
	all := networkSettings(ts, args[0])
	if len(all) != 1 {
		ts.Fatalf("portolan inspect %s: %d endpoints, want 1: %s", args[0], len(all), all)
	}
	var got, want any
	ts.Check(json.Unmarshal(all[0], &got))
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &want))
	if !assert.ObjectsAreEqual(want, got) {
		text, err := json.MarshalIndent(got, "", "  ")
		ts.Check(err)
		ts.Fatalf("portolan inspect %s has other NetworkSettings than %s: %s", args[0], args[1], text)
	}
}

func ports(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, "FILE")
	out, err := hostOf(ts).commandOf(ts, "mounted", "portolan", "ls").Output()
	ts.Check(err)
	var got []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) > 0 {
			got = append(got, fields[0])
		}
	}
	if want := append([]string{"PORTS"}, strings.Fields(ts.ReadFile(args[0]))...); !slices.Equal(want, got) {
		ts.Fatalf("portolan ls has other ports than %s:\n%s", args[0], out)
	}
}

func snapshot(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, "NAME")
	h := hostOf(ts)
	h.named[args[0]] = h.take()
}

// same waits a little: the kernel removes devices after the engine has answered.
func same(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, "NAME")
	h := hostOf(ts)
	before, ok := h.named[args[0]]
	if !ok {
		ts.Fatalf("same: no snapshot %s", args[0])
	}
	ts.Check(enginetest.Poll(5*time.Second, func() error {
		if diff := enginetest.Diff(before, h.take()); diff != "" {
			return fmt.Errorf("not as it was at %s:\n%s", args[0], diff)
		}
		return nil
	}))
}
