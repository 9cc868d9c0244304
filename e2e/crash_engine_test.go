package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The engine is killed, alone or with the daemon, while the daemon is in the
// middle of an operation. Without live-restore it ends, at its next start, what
// still ran, and tells no driver: what it forgot holds nothing, and what a user
// does next works at once.
func TestEngineCrash(t *testing.T) {
	t.Parallel()
	for _, mapper := range []string{"nftables", "iptables"} {
		t.Run(mapper, func(t *testing.T) {
			t.Parallel()
			r := newCrashRig(t, mapper)
			for _, op := range crashOperations {
				if op.name != "run" && op.name != "rm" {
					continue
				}
				if whole := t.Run(op.name, func(t *testing.T) { r.in(t).engineCrashes(op) }); !whole {
					return
				}
			}
		})
	}
}

func (r *crashRig) engineCrashes(op operation) {
	r.prepareForCrash(op)
	passes := r.trace(func() { r.docker(op.do...) })
	r.answers(op.name, op.ports, op.dials...)
	// One moment of every call, and of every kind of step: its last pass.
	moments := slices.DeleteFunc(passes, func(p pass) bool {
		return p.call == "" || strings.HasPrefix(p.point, "store ") && p.point != "store rename"
	})
	few := r.chosen(moments, 2)
	r.Logf("%s: %d moments, killed at %d: %s", op.name, len(moments), len(few), few)
	require.NotEmpty(r, few)
	after := r.picture()
	for i, p := range few {
		r.prepareForCrash(op)
		both := i%2 == 0
		what := op.name + ", engine killed at " + p.String()
		done, reached := r.hold(p, func() error {
			_, err := r.engine.Docker(op.do...)
			return err
		}, func() {
			if both {
				what += " with the daemon"
				r.killDaemon()
			}
			require.NoError(r, r.engine.Kill())
		})
		<-done // whatever the docker command makes of it
		require.True(r, reached, what)
		if both {
			require.NoError(r, r.startDaemon(""))
		}
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
}

// prepareForCrash has the bystander start again with the engine.
func (r *crashRig) prepareForCrash(op operation) {
	op.from(r)
	r.docker("update", "--restart", "always", "by")
}
