package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/portolan/portolan/internal/enginetest"
)

// repairTime is how long a test waits for what the daemon promises to put back
// within 2 seconds: on a machine that is busy with other tests its own programs
// take their time. What is only found because the daemon looks at bridges and
// ports every 10 seconds, without having heard, is late.
const repairTime = 6 * time.Second

// Where the kernel keeps the table, which is what an nftables mapper has from
// Linux 6.9 on, nothing opens.
func TestKept(t *testing.T) {
	t.Parallel()
	run(t, "testdata/kept", func(h *host) error { return h.startDaemon("nftables") })
}

// soon is until, for what has to be so within repairTime.
func soon(ts *testscript.TestScript, neg bool, args []string) {
	poll(ts, neg, args, "soon", repairTime)
}

// health asks the daemon's socket until it answers as wanted.
func health(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: health [PROBLEM]")
	}
	h := hostOf(ts)
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.socket())
	}}}
	ts.Check(enginetest.Poll(patience, func() error {
		resp, err := c.Get("http://portolan/Plugin.Health")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var answer struct {
			Healthy  bool
			Problems []string
		}
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			return err
		}
		all := strings.Join(answer.Problems, "\n")
		switch {
		case answer.Healthy != (resp.StatusCode == http.StatusOK), answer.Healthy != (len(answer.Problems) == 0):
			return fmt.Errorf("status %d, healthy %t, problems %q", resp.StatusCode, answer.Healthy, answer.Problems)
		case len(args) == 0 && !answer.Healthy, len(args) == 1 && !strings.Contains(all, args[0]):
			return fmt.Errorf("it says %q", answer.Problems)
		}
		return nil
	}))
}

// busConfig is a system bus that asks nobody whether one may talk to firewalld.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>
`

// firewalls are the system bus and the firewalld of a script's host, both with a
// configuration of their own.
type firewalls struct {
	bus, firewalld *enginetest.Process
}

func firewalld(ts *testscript.TestScript, neg bool, args []string) {
	h := hostOf(ts)
	f := &h.firewalls
	switch {
	case neg:
	case len(args) == 2 && args[0] == "start":
		ts.Check(h.startFirewalld(args[1]))
		return
	case len(args) == 1 && args[0] == "stop":
		ts.Check(f.firewalld.Stop(syscall.SIGTERM, patience))
		return
	}
	ts.Fatalf("usage: firewalld start BACKEND, or firewalld stop")
}

// startFirewalld starts firewalld and, the first time, the bus.
func (h *host) startFirewalld(backend string) error {
	dir := filepath.Join(h.engine.Dir, "firewalld")
	f := &h.firewalls
	if f.bus == nil {
		config := filepath.Join(h.engine.Dir, "bus.conf")
		if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, h.engine.BusAddress()), 0o600); err != nil {
			return err
		}
		var err error
		f.bus, err = enginetest.Start("dbus-daemon", config+".log", h.command("dbus-daemon", "--nofork", "--config-file="+config))
		if err != nil {
			return err
		}
		h.t.Cleanup(func() { _ = f.bus.Stop(syscall.SIGKILL, patience) })
		if _, err := enginetest.Run(exec.Command("cp", "-a", "/etc/firewalld", dir)); err != nil {
			return err
		}
		err = enginetest.Poll(patience, func() error { _, err := os.Stat(filepath.Join(h.engine.Dir, "bus")); return err })
		if err != nil {
			return err
		}
	}
	_, err := enginetest.Run(exec.Command("sed", "-i", "s/^FirewallBackend=.*/FirewallBackend="+backend+"/", dir+"/firewalld.conf"))
	if err != nil {
		return err
	}
	f.firewalld, err = enginetest.Start("firewalld", dir+".log",
		h.command("host", "firewalld", "--nofork", "--nopid", "--system-config", dir, "--log-file", dir+".log"))
	if err != nil {
		return err
	}
	started := f.firewalld
	h.t.Cleanup(func() {
		_ = started.Stop(syscall.SIGKILL, patience)
		if h.t.Failed() {
			h.t.Logf("firewalld said last:\n%s", started.Tail(20))
		}
	})
	return enginetest.Poll(patience, func() error {
		_, err := enginetest.Run(h.command("firewall-cmd", "--state"))
		if err != nil && !started.Alive() {
			return fmt.Errorf("firewalld has ended: %s", started.Tail(5))
		}
		return err
	})
}

// ufw has /etc/ufw and /etc/default/ufw in a folder of the script, so that the
// machine's own is not touched.
func ufw(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: ufw ARGS…")
	}
	h := hostOf(ts)
	dir := filepath.Join(h.engine.Dir, "ufw")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		for _, copied := range [][]string{{"cp", "-a", "/etc/ufw", dir}, {"cp", "-a", "/etc/default/ufw", dir + ".default"}} {
			_, err := enginetest.Run(exec.Command(copied[0], copied[1:]...))
			ts.Check(err)
		}
	}
	const inside = `mount --bind "$1" /etc/ufw && mount --bind "$1.default" /etc/default/ufw && shift && exec ufw --force "$@"`
	out, err := enginetest.Run(h.command(append([]string{"host", "unshare", "--mount", "--", "sh", "-c", inside, "sh", dir}, args...)...))
	fmt.Fprintln(ts.Stdout(), out)
	ts.Check(err)
}
