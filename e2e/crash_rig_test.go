package e2e

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/enginetest"
)

// crashVariable is which of the steps are tried: "all", as 2/3 the second third of
// them, or a few without it.
const crashVariable = "PORTOLAN_CRASH"

// faulty is the folder of a portolan that was built with the tag faults, and with
// the race detector.
var faulty = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(programs, "faults")
	cmd := exec.Command("go", "build", "-race", "-tags", "faults", "-trimpath", "-o", filepath.Join(dir, "portolan"), "../plugin")
	_, err := enginetest.Run(cmd)
	return dir, err
})

// crashRig is a host whose daemon can be killed after any of its steps (package
// internal/fault).
type crashRig struct {
	*host
	*testing.T
	faults string // the folder of trace, kill and hold
}

func newCrashRig(t *testing.T, mapper string) *crashRig {
	dir, err := faulty()
	require.NoError(t, err)
	h := newHost(t)
	h.export(&testscript.Env{Values: map[any]any{}})
	r := &crashRig{host: h, T: t, faults: filepath.Join(h.engine.Dir, "faults")}
	require.NoError(t, os.Mkdir(r.faults, 0o755))
	h.setenv("PATH", dir+string(os.PathListSeparator)+h.vars.Getenv("PATH"))
	h.setenv("PORTOLAN_FAULTS", r.faults)
	require.NoError(t, h.startDaemon(mapper))
	r.rows() // it has restored what there was
	return r
}

// in is the rig for a part of the test.
func (r *crashRig) in(t *testing.T) *crashRig { return &crashRig{r.host, t, r.faults} }

// docker runs the docker command, which must succeed.
func (r *crashRig) docker(args ...string) {
	r.Helper()
	_, err := r.engine.Docker(args...)
	require.NoError(r, err)
}

// pass is the N-th time that the daemon comes to a point.
type pass struct {
	point string
	n     int
	call  string // the engine's call in which that is, as Join
}

func (p pass) String() string { return fmt.Sprintf("%s %d", p.point, p.n) }

func (r *crashRig) file(name string) string { return filepath.Join(r.faults, name) }

// trace lists the passes of an operation, in order.
func (r *crashRig) trace(do func()) []pass {
	r.Helper()
	require.NoError(r, os.WriteFile(r.file("trace"), nil, 0o644))
	do()
	text, err := os.ReadFile(r.file("trace"))
	require.NoError(r, err)
	require.NoError(r, os.Remove(r.file("trace")))
	var passes []pass
	count := map[string]int{}
	for line := range strings.Lines(string(text)) {
		name := strings.TrimSpace(line)
		count[name]++
		passes = append(passes, pass{name, count[name], ""})
	}
	call := ""
	for i, p := range slices.Backward(passes) {
		if path, found := strings.CutPrefix(p.point, "answer /NetworkDriver."); found {
			call = path
		}
		passes[i].call = call
	}
	return passes
}

// chosen are the first and the last pass of each point, of which make test takes
// a few that are evenly spread, others for either mapper (crashVariable).
func (r *crashRig) chosen(all []pass, few int) (some []pass) {
	last := map[string]int{}
	for _, p := range all {
		last[p.point] = p.n
	}
	all = slices.DeleteFunc(slices.Clone(all), func(p pass) bool { return p.n != 1 && p.n != last[p.point] })
	var part, parts int
	share := os.Getenv(crashVariable)
	_, err := fmt.Sscanf(share, "%d/%d", &part, &parts)
	switch {
	case share == "all":
		return all
	case share != "":
		require.NoError(r, err, "%s=%s", crashVariable, share)
		for i, p := range all {
			if i%parts == part-1 {
				some = append(some, p)
			}
		}
		return some
	}
	from := len(all) / (2 * few)
	if r.mapper == "iptables" {
		from = 0
	}
	for i := range few {
		some = append(some, all[from+i*len(all)/few])
	}
	return some
}

// crash kills the daemon when it comes to p in what do does, starts it again, as
// systemd would, and returns do's error. Meanwhile the kernel serves what it
// served before: during. It says whether p was come to: the last pass of a point
// may not be, as concurrent writes of the state share one.
func (r *crashRig) crash(p pass, do func() error, during ...string) (reached bool, err error) {
	r.Helper()
	r.order("kill", p)
	done := r.begin(do)
	finished := false
	require.NoError(r, enginetest.Poll(2*time.Minute, func() error {
		select {
		case err = <-done:
			finished = true
		default:
		}
		if finished || !r.daemon.Alive() {
			return nil
		}
		return fmt.Errorf("%s: neither has the daemon ended nor the operation", p)
	}))
	reached = !r.daemon.Alive()
	r.disarm()
	if reached {
		require.NoError(r, r.dials("without a daemon, killed at "+p.String(), during...))
		require.NoError(r, r.startDaemon(""))
	}
	if !finished {
		err = <-done
	}
	return reached, err
}

// order has the daemon do something at p.
func (r *crashRig) order(action string, p pass) {
	require.NoError(r, os.WriteFile(r.file(action), []byte(p.String()), 0o644))
	require.NoError(r, os.WriteFile(r.file("trace"), nil, 0o644))
}

func (r *crashRig) disarm() {
	for _, name := range []string{"kill", "hold", "trace"} {
		_ = os.Remove(r.file(name)) // those that are there
	}
}

// begin runs do beside.
func (r *crashRig) begin(do func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return done
}

// hold stops the daemon when it comes to p in what do does, and calls then. It
// returns what do does, for the caller to wait for, and whether p was come to.
func (r *crashRig) hold(p pass, do func() error, then func()) (done <-chan error, reached bool) {
	r.Helper()
	r.order("hold", p)
	done = r.begin(do)
	err := enginetest.Poll(patience, func() error {
		text, err := os.ReadFile(r.file("trace"))
		if err == nil && strings.Count("\n"+strings.ReplaceAll(string(text), "\n", "\n\n"), "\n"+p.point+"\n") < p.n {
			err = fmt.Errorf("%s has not been come to", p)
		}
		return err
	})
	if err == nil {
		then()
	}
	r.disarm()
	return done, err == nil
}

// settled waits until the host is as a state says: what the kernel has, with
// the IDs of endpoints and networks and the ephemeral port by name.
func (r *crashRig) settled(what string, want enginetest.Snapshot) {
	r.Helper()
	require.NoError(r, enginetest.Poll(patience, func() error {
		if diff := enginetest.Diff(want, r.picture()); diff != "" {
			return fmt.Errorf("%s: not as it should be:\n%s", what, diff)
		}
		return r.recorded()
	}))
}

// picture is the state of the host, without what differs from run to run.
func (r *crashRig) picture() enginetest.Snapshot {
	var names []string // and what to call them
	ids, err := r.engine.Docker("network", "ls", "-q", "--no-trunc", "--filter", "type=custom")
	require.NoError(r, err)
	for _, id := range strings.Fields(ids) {
		name, err := r.engine.Docker("network", "inspect", "--format", "{{.Name}}", id)
		require.NoError(r, err)
		names = append(names, id, "N-"+name, id[:12], "n-"+name)
	}
	for _, ep := range r.endpoints() {
		names = append(names, ep.id, "E-"+ep.name, ep.id[:12], "e-"+ep.name, ep.id[:10], "v-"+ep.name)
	}
	for _, row := range r.rows() {
		if row.ContainerPort == 7001 {
			names = append(names, fmt.Sprint(row.HostPort), "EPHEMERAL")
		}
	}
	replace := strings.NewReplacer(names...)
	state := r.take()
	for kind, lines := range state {
		for i, line := range lines {
			// First, as such a UDP port may have the number of the ephemeral TCP port.
			line = steering.ReplaceAllString(line, "$1:STEERING")
			state[kind][i] = serial.ReplaceAllString(replace.Replace(line), "$1")
		}
	}
	return state
}

var (
	// serial is in the name of a device of Docker's own.
	serial = regexp.MustCompile(`(veth)[0-9a-f]{7}\b`)
	// steering is a socket that long ranges are led to.
	steering = regexp.MustCompile(`(127\.0\.0\.1|\[::1\]):[3-6]\d{4}\b`)
)

// endpoint is one of a running container, as the engine has it.
type endpoint struct{ name, id string }

// endpoints are by container and network.
func (r *crashRig) endpoints() (all []endpoint) {
	ids, err := r.engine.Docker("ps", "-q")
	require.NoError(r, err)
	for _, id := range strings.Fields(ids) {
		out, err := r.engine.Docker("inspect", "--format", "{{$c := .Name}}{{range $n, $e := .NetworkSettings.Networks}}{{$c}}-{{$n}} {{$e.EndpointID}}\n{{end}}", id)
		require.NoError(r, err)
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 2 {
				all = append(all, endpoint{strings.TrimPrefix(f[0], "/"), f[1]})
			}
		}
	}
	slices.SortFunc(all, func(a, b endpoint) int { return cmp.Compare(a.name, b.name) })
	return all
}

// row is one of portolan ls --json.
type row struct {
	Ports         string
	HostPort      uint16
	ContainerPort uint16
	EndpointID    string
}

func (r *crashRig) rows() (rows []row) {
	out, err := r.command("portolan", "ls", "--json").Output()
	require.NoError(r, err)
	require.NoError(r, json.Unmarshal(out, &rows))
	return rows
}

// recorded compares the state file with the engine: it has its networks, every
// endpoint of a container that runs, and no other that holds anything.
func (r *crashRig) recorded() error {
	data, err := os.ReadFile(filepath.Join(r.stateDir(), "state.json"))
	if errors.Is(err, os.ErrNotExist) {
		data, err = []byte("\n{}"), nil
	}
	require.NoError(r, err)
	_, body, _ := strings.Cut(string(data), "\n")
	var state struct {
		Networks  []struct{ ID, Phase string }
		Endpoints []struct {
			ID, Sandbox string
			Mappings    json.RawMessage
		}
	}
	require.NoError(r, json.Unmarshal([]byte(body), &state))
	var have, want []string
	for _, n := range state.Networks {
		have = append(have, n.ID+" "+n.Phase)
	}
	for _, ep := range state.Endpoints {
		if ep.Sandbox != "" || ep.Mappings != nil {
			have = append(have, ep.ID)
		}
	}
	ids, err := r.engine.Docker("network", "ls", "-q", "--no-trunc", "--filter", "driver="+driver)
	require.NoError(r, err)
	for _, id := range strings.Fields(ids) {
		want = append(want, id+" done")
	}
	for _, ep := range r.endpoints() {
		want = append(want, ep.id)
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		return fmt.Errorf("on record is\n%s\nbut the engine has\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
	return nil
}

// ports are those of portolan ls but the ephemeral one.
func (r *crashRig) ports() (ports []string) {
	for _, row := range r.rows() {
		if row.ContainerPort != 7001 {
			ports = append(ports, row.Ports)
		}
	}
	return ports
}

// answers waits until all of what a state publishes is served, and no more.
func (r *crashRig) answers(what string, ports []string, dials ...string) {
	r.Helper()
	require.NoError(r, enginetest.Poll(patience, func() error {
		if have := r.ports(); !slices.Equal(ports, have) {
			return fmt.Errorf("%s: portolan ls has %q instead of %q", what, have, ports)
		}
		return r.dials(what, dials...)
	}))
}

// dials asks for each of them, once.
func (r *crashRig) dials(what string, dials ...string) error {
	for _, d := range dials {
		if _, err := enginetest.Run(r.command(strings.Fields(d)...)); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// killDaemon is kill -9.
func (r *crashRig) killDaemon() {
	require.NoError(r, r.daemon.Stop(syscall.SIGKILL, patience))
}
