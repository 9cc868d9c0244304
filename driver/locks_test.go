package driver

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A call that waits too long for any of its locks fails, and has given back
// those that it had.
func TestHoldGivesUp(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.run(1, 2, 2, false, "/sb")
	request := endpointRequest{id(1), id(2)}
	for name, lock := range map[string]func() (func(), error){
		"network":  func() (func(), error) { return r.networks.own(t.Context(), id(1)) },
		"endpoint": func() (func(), error) { return r.endpoints.own(t.Context(), id(2)) },
		"sandbox":  func() (func(), error) { return r.sandboxes.own(t.Context(), "/sb") },
	} {
		t.Run(name, func(t *testing.T) {
			release, err := lock()
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			_, err = r.leave(ctx, request)
			require.ErrorContains(t, err, "is not finished, try again")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			release()
			assert.Empty(t, r.networks.m)
			assert.Empty(t, r.endpoints.m)
			assert.Empty(t, r.sandboxes.m)
		})
	}
	// A task that looks for dead endpoints has nobody to catch a panic.
	release, err := r.endpoints.own(t.Context(), id(2))
	require.NoError(t, err)
	r.abandon(2)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, r.buryDead(ctx, r.clock.now().Add(time.Minute)), "bury endpoint")
	release()
	require.NoError(t, r.buryDead(t.Context(), r.clock.now().Add(time.Minute)))
}
