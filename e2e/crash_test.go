package e2e

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/enginetest"
)

// operation is what a user does in a state, which leads to another.
type operation struct {
	name string
	// from brings about the state before, once more and from any state.
	from func(*crashRig)
	do   []string // docker's arguments
	// again is what a user types where do has failed; nil is do itself.
	again [][]string
	next  [][]string // what is done next, in any case
	// lost is what a user types where the engine did not ask again for the ports
	// to be published, in a call that it takes no answer to.
	lost   [][]string
	ports  []string // portolan ls afterwards
	dials  []string // what answers afterwards
	during []string // what answers even without a daemon
}

var crashOperations = []operation{
	{
		name: "first network",
		from: func(r *crashRig) { r.removeAll() },
		do:   createNetwork("n1", "30"),
	}, {
		name: "last network",
		from: func(r *crashRig) { r.removeAll(); r.docker(createNetwork("n1", "30")...) },
		do:   []string{"network", "rm", "n1"},
		// An engine forgets a network that it could not have removed. The next one
		// with its pool gets that.
		next: [][]string{createNetwork("n1", "30"), {"network", "rm", "n1"}},
	}, {
		name:   "run",
		from:   withBystander,
		do:     runC1,
		again:  [][]string{{"rm", "-f", "c1"}, runC1},
		ports:  portsOfBoth,
		dials:  dialsOfBoth,
		during: dialsOfBystander,
	}, {
		name:   "rm",
		from:   func(r *crashRig) { withBystander(r); r.docker(runC1...) },
		do:     []string{"rm", "-f", "c1"},
		ports:  portsOfBystander,
		dials:  dialsOfBystander,
		during: dialsOfBystander,
	}, {
		name:   "stop and start",
		from:   func(r *crashRig) { withBystander(r); r.docker(runC1...) },
		do:     []string{"restart", "-t", "0", "c1"},
		again:  [][]string{{"restart", "c1"}},
		ports:  portsOfBoth,
		dials:  dialsOfBoth,
		during: dialsOfBystander,
	}, {
		name:   "connect",
		from:   func(r *crashRig) { withBystander(r); r.docker(createNetwork("a", "31")...); r.docker(runC1...) },
		do:     []string{"network", "connect", "a", "c1"},
		ports:  portsOfBoth,
		dials:  dialsOfBoth,
		during: dialsOfBystander,
	}, {
		name: "disconnect",
		from: func(r *crashRig) {
			withBystander(r)
			r.docker(createNetwork("a", "31")...)
			r.docker(runC1...)
			r.docker("network", "connect", "a", "c1")
		},
		do:     []string{"network", "disconnect", "a", "c1"},
		lost:   [][]string{{"network", "connect", "a", "c1"}, {"network", "disconnect", "a", "c1"}},
		ports:  portsOfBoth,
		dials:  dialsOfBoth,
		during: dialsOfBystander,
	},
}

func createNetwork(name, third string) []string {
	return []string{"network", "create", "-d", driver, "-o", "com.docker.network.bridge.name=br-" + name, "--subnet", "172." + third + ".0.0/24", "--ipv6", "--subnet", "fd00:" + third + "::/64", name}
}

// withBystander is a network with a container that nothing happens to.
func withBystander(r *crashRig) {
	r.docker("network", "prune", "-f") // those that nobody uses
	if _, err := r.engine.Docker("inspect", "by"); err != nil {
		r.docker(createNetwork("n1", "30")...)
		r.docker("run", "-d", "--name", "by", "--network", "n1", "--ip", "172.30.0.9", "--ip6", "fd00:30::9",
			"-p", "5300:7000/udp", "-p", "5300:7000", image, "echo", "-udp", "7000", "-tcp", "7000")
	}
	if _, err := r.engine.Docker("inspect", "c1"); err == nil {
		r.docker("rm", "-f", "c1")
		r.docker("network", "prune", "-f")
	}
}

var runC1 = []string{
	"run", "-d", "--name", "c1", "--network", "n1", "--ip", "172.30.0.10", "--ip6", "fd00:30::10",
	"-p", "5310:7000/udp", "-p", "5310:7000", "-p", "127.0.0.1:5311:7000/udp", "-p", "7001", "-p", "20000-21099:20000-21099/udp",
	image, "echo", "-udp", "7000,20000-20001,21099", "-tcp", "7000-7001",
}

var (
	portsOfBystander = []string{"5300->7000", "5300->7000/udp"}
	portsOfBoth      = []string{"5300->7000", "5310->7000", "5300->7000/udp", "5310->7000/udp", "127.0.0.1:5311->7000/udp", "20000-21099->20000-21099/udp"}
	dialsOfBystander = []string{
		"neighbour dial udp " + enginetest.HostIPv4 + ":5300",
		"neighbour dial tcp [" + enginetest.HostIPv6 + "]:5300",
		"host dial udp 127.0.0.1:5300",
	}
	dialsOfBoth = append([]string{
		"neighbour dial udp " + enginetest.HostIPv4 + ":5310",
		"neighbour dial tcp [" + enginetest.HostIPv6 + "]:5310",
		"neighbour dial udp " + enginetest.HostIPv4 + ":21099",
		"host dial tcp 127.0.0.1:5310",
		"host dial udp 127.0.0.1:5311",
		"host dial udp [::1]:5310",
		"host dial udp [::1]:20001",
	}, dialsOfBystander...)
)

// The daemon is killed after every step of what users do (in make test, after
// some of them), and started again: then the kernel, the sockets, the record
// and the report are those of the containers that run, as after an undisturbed
// run, and what failed can be done again at once.
func TestCrash(t *testing.T) {
	t.Parallel()
	for _, mapper := range []string{"nftables", "iptables"} {
		t.Run(mapper, func(t *testing.T) {
			t.Parallel()
			r := newCrashRig(t, mapper)
			for _, op := range crashOperations {
				whole := t.Run(op.name, func(t *testing.T) { r.in(t).crashes(op) })
				if !whole {
					return // the harness tidies up once
				}
			}
			t.Run("start", func(t *testing.T) { r.in(t).startCrashes(mapper) })
			other := map[string]string{"nftables": "iptables", "iptables": "nftables"}[mapper]
			t.Run("start with "+other, func(t *testing.T) { r.in(t).startCrashes(other) })
		})
	}
}

func (r *crashRig) crashes(op operation) {
	op.from(r)
	passes := r.trace(func() { r.docker(op.do...) })
	r.answers(op.name, op.ports, op.dials...)
	after := r.picture()
	few := r.chosen(passes, 2)
	r.Logf("%s: %d passes, killed at %d: %s", op.name, len(passes), len(few), few)
	require.NotEmpty(r, few)
	missed := 0
	for _, p := range few {
		op.from(r)
		reached, err := r.crash(p, func() error {
			_, err := r.engine.Docker(op.do...)
			return err
		}, op.during...)
		what := op.name + ", killed at " + p.String()
		if !reached {
			require.Greater(r, p.n, 1, "%s: not come to", what)
			missed++
		}
		var then [][]string
		if err != nil {
			if then = op.again; then == nil {
				then = [][]string{op.do}
			}
		}
		if op.lost != nil && p.call == "ProgramExternalConnectivity" && slices.Equal(r.ports(), portsOfBystander) {
			then = op.lost
		}
		for _, args := range slices.Concat(then, op.next) {
			_, err := r.engine.Docker(args...)
			require.NoError(r, err, what)
		}
		// Engines since 29 may start a container whose restart failed without any
		// network, for good.
		nets, err := r.engine.Docker("inspect", "-f", "{{len .NetworkSettings.Networks}}", "c1")
		if err == nil && strings.TrimSpace(nets) == "0" && op.name == "stop and start" {
			r.Logf("%s: the engine has lost the container's network", what)
			r.docker("rm", "-f", "c1")
			r.docker(runC1...)
		}
		r.answers(what, op.ports, op.dials...)
		r.settled(what, after)
	}
	require.LessOrEqual(r, missed, max(1, len(few)/4), "%s: too many passes were not come to", op.name)
}

// startCrashes is crashes for the start of a daemon that has much to restore, and
// that has to change the rules to those of another mapper, maybe.
func (r *crashRig) startCrashes(to string) {
	from := r.mapper
	restart := func(mapper string) {
		r.killDaemon()
		require.NoError(r, r.startDaemon(mapper))
		require.NoError(r, r.healthy(patience)) // and the other mapper's rules are gone
		r.answers("start with "+mapper, portsOfBoth, dialsOfBoth...)
	}
	withBystander(r)
	r.docker(createNetwork("a", "31")...)
	r.docker(runC1...)
	r.docker("network", "connect", "a", "c1")
	r.answers("before", portsOfBoth, dialsOfBoth...)
	restart(to)
	after := r.picture()
	ephemeral := r.rows()
	restart(from)
	passes := r.trace(func() { restart(to) })
	few := r.chosen(passes, 2)
	r.Logf("start: %d passes, killed at %d: %s", len(passes), len(few), few)
	for _, p := range few {
		what := "start with " + to + ", killed at " + p.String()
		restart(from)
		r.killDaemon()
		r.order("kill", p)
		_ = r.startDaemon(to) // it may end before or after it listens
		wait := patience
		if p.n > 1 { // concurrent writes may share one, which is then not come to
			wait /= 4
		}
		err := enginetest.Poll(wait, func() error {
			if r.daemon.Alive() {
				return errors.New(what + ": the daemon has not come to it")
			}
			return nil
		})
		if p.n == 1 {
			require.NoError(r, err)
		}
		if err != nil {
			r.killDaemon()
		}
		r.disarm()
		require.NoError(r, r.dials(what, dialsOfBystander...))
		require.NoError(r, r.startDaemon(to))
		r.answers(what, portsOfBoth, dialsOfBoth...)
		r.settled(what, after)
		require.Equal(r, ephemeral, r.rows(), what)
	}
}
