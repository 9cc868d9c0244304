package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/internal/enginetest"
)

// Containers are started and removed at once, in random order, round after
// round; each answers at its own ports, and nothing is left over. PORTOLAN_STORM
// is how many, how often, and, to repeat a run, its seed: 200x20 or 200x20x7.
func TestStorm(t *testing.T) {
	t.Parallel()
	containers, rounds, seed := 20, 2, uint64(time.Now().UnixNano())
	if text := os.Getenv("PORTOLAN_STORM"); text != "" {
		n, _ := fmt.Sscanf(text, "%dx%dx%d", &containers, &rounds, &seed)
		require.GreaterOrEqual(t, n, 2, "PORTOLAN_STORM=%s", text)
	}
	for _, mapper := range []string{"nftables", "iptables"} {
		t.Run(mapper, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.export(&testscript.Env{Values: map[any]any{}})
			require.NoError(t, h.startDaemon(mapper))
			_, err := h.engine.Docker("network", "create", "-d", driver, "--subnet", "172.30.0.0/22", "--ipv6", "--subnet", "fd00:30::/64", "n1")
			require.NoError(t, err)
			t.Logf("%d containers, %d rounds, seed %d", containers, rounds, seed)
			random := rand.New(rand.NewPCG(seed, 0))
			before := h.take()
			for round := range rounds {
				began := time.Now()
				require.NoError(t, h.storm(round, random.Perm(containers), random.Perm(containers)))
				require.NoError(t, enginetest.Poll(patience, func() error {
					if diff := enginetest.Diff(before, h.take()); diff != "" {
						return fmt.Errorf("round %d has left:\n%s", round, diff)
					}
					return nil
				}))
				ls, err := enginetest.Run(h.command("portolan", "ls", "--json"))
				require.NoError(t, err)
				assert.JSONEq(t, "[]", ls)
				t.Logf("round %d took %s", round, time.Since(began).Round(time.Second))
			}
			require.NoError(t, h.removeNetwork("n1"))
		})
	}
}

// removeNetwork removes a network that no container is on. Where many come and go
// at once, an engine of 20.10 may count one too many, which it finds out when it
// starts (moby/moby#42119).
func (h *host) removeNetwork(name string) error {
	_, err := h.engine.Docker("network", "rm", name)
	if err == nil || !strings.Contains(err.Error(), "has active endpoints") {
		return err
	}
	h.t.Log("the engine has miscounted: ", err)
	if err := errors.Join(h.engine.Stop(), h.engine.Start()); err != nil {
		return err
	}
	_, err = h.engine.Docker("network", "rm", name)
	return err
}

// storm is a round. The first to be removed go while the last still start, in an
// order of their own.
func (h *host) storm(round int, order, removal []int) error {
	name := func(i int) string { return fmt.Sprintf("c%d-%d", round, i) }
	begun := make(chan struct{})
	started := make([]chan struct{}, len(order))
	for i := range started {
		started[i] = make(chan struct{})
	}
	var start, remove errgroup.Group
	start.SetLimit(16) // docker commands at once
	remove.SetLimit(16)
	go func() {
		defer close(begun)
		for _, i := range order {
			start.Go(func() error {
				port := fmt.Sprint(6000 + i)
				_, err := h.engine.Docker("run", "-d", "--name", name(i), "--network", "n1",
					"-p", port+":7000/udp", "-p", port+":7000", "-p", "7001", image, "echo", "-udp", "7000", "-tcp", "7000-7001", "-name", name(i))
				close(started[i])
				return err
			})
		}
	}()
	for _, i := range removal {
		remove.Go(func() error {
			<-started[i]
			err := enginetest.Poll(patience, func() error {
				answer, err := enginetest.Run(h.command("neighbour", "dial", []string{"udp", "tcp"}[i%2], fmt.Sprintf("%s:%d", enginetest.HostIPv4, 6000+i)))
				if want := fmt.Sprintf(" hello %s", name(i)); err == nil && !strings.HasSuffix(answer, want) {
					err = fmt.Errorf("port %d is answered by %q instead of %q", 6000+i, answer, want)
				}
				return err
			})
			if err != nil {
				return err
			}
			_, err = h.engine.Docker("rm", "-f", name(i))
			return err
		})
	}
	<-begun
	return errors.Join(start.Wait(), remove.Wait())
}
