package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/enginetest"
)

// blow is what ends while the daemon is in the middle of an operation, and how
// the engine starts again.
type blow struct {
	what        string
	liveRestore bool
	// strike ends it. After that there is a daemon or not, and no engine.
	strike func(*crashRig)
}

// blows are with live-restore and without, in an order in which all of them come
// early.
var blows = []blow{
	{"engine", false, (*crashRig).killEngine},
	{"engine and daemon", true, (*crashRig).killBoth},
	{"machine", false, (*crashRig).powerOff},
	{"engine", true, (*crashRig).killEngine},
	{"engine and daemon", false, (*crashRig).killBoth},
	{"machine", true, (*crashRig).powerOff},
}

// blowsAt are those for the i-th moment: in make test one, each time another.
func blowsAt(i int) []blow {
	if os.Getenv(crashVariable) == "" {
		return blows[i%len(blows):][:1]
	}
	// One of each kind, with and without live-restore in turn.
	return append(append([]blow{}, blows[3*(i%2):]...), blows...)[:3]
}

// The engine, or with the daemon, or the whole machine ends while the daemon is
// in the middle of an operation. Without live-restore the engine ends, at its
// next start, what still ran, and tells no driver: what it forgot holds nothing,
// and what a user does next works at once.
func TestEngineCrash(t *testing.T) {
	t.Parallel()
	for m, mapper := range []string{"nftables", "iptables"} {
		t.Run(mapper, func(t *testing.T) {
			t.Parallel()
			r := newCrashRig(t, mapper)
			first := m // moments so far
			for _, op := range crashOperations {
				if op.name != "run" && op.name != "rm" {
					continue
				}
				if whole := t.Run(op.name, func(t *testing.T) { first += r.in(t).engineCrashes(op, first) }); !whole {
					return
				}
			}
		})
	}
}

// engineCrashes is for the moments of an operation, of which it returns how many
// there were; first is the number of the first one.
func (r *crashRig) engineCrashes(op operation, first int) int {
	r.prepareForCrash(op)
	passes := r.trace(func() { r.docker(op.do...) })
	r.answers(op.name, op.ports, op.dials...)
	// One moment of every call, and of every kind of step: its last pass.
	moments := slices.DeleteFunc(passes, func(p pass) bool {
		return p.call == "" || strings.HasPrefix(p.point, "store ") && p.point != "store rename"
	})
	few := r.chosen(moments, 3)
	r.Logf("%s: %d moments, killed at %d: %s", op.name, len(moments), len(few), few)
	require.NotEmpty(r, few)
	after := r.picture()
	for i, p := range few {
		for _, b := range blowsAt(first + i) {
			r.engineCrash(op, p, b, after)
		}
	}
	return len(few)
}

func (b blow) String() string {
	if b.liveRestore {
		return b.what + " ended with live-restore"
	}
	return b.what + " ended"
}

func (r *crashRig) engineCrash(op operation, p pass, b blow, after enginetest.Snapshot) {
	r.prepareForCrash(op)
	what := op.name + ", " + b.String() + " at " + p.String()
	r.Log(what)
	done, reached := r.hold(p, func() error {
		_, err := r.engine.Docker(op.do...)
		return err
	}, func() { b.strike(r) })
	<-done // whatever the docker command makes of it
	require.True(r, reached, what)
	if !r.daemon.Alive() {
		require.NoError(r, r.startDaemon(""))
	}
	r.engine.LiveRestore = b.liveRestore
	require.NoError(r, r.engine.Start(), what)
	// A container that is to be removed is there still or not; one that has
	// begun to start may be there, and does not run.
	if _, err := r.engine.Docker("inspect", "c1"); err == nil {
		r.docker("rm", "-f", "c1")
	}
	if op.name == "run" {
		r.docker(op.do...)
	}
	r.answers(what, op.ports, op.dials...)
	r.settled(what, after)
}

func (r *crashRig) killEngine() { require.NoError(r, r.engine.Kill()) }

func (r *crashRig) killBoth() {
	r.killDaemon()
	r.killEngine()
}

func (r *crashRig) powerOff() {
	r.killDaemon()
	require.NoError(r, r.reboot())
}

// prepareForCrash has the bystander start again with the engine.
func (r *crashRig) prepareForCrash(op operation) {
	op.from(r)
	r.docker("update", "--restart", "always", "by")
}
