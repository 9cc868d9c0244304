package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/systemdtest"
)

func TestHealthIsWhatTheTasksSay(t *testing.T) {
	var h health
	now := time.Now()
	assert.Equal(t, []string{"the state is being restored"}, h.problems(now))
	h.ready(slog.New(slog.DiscardHandler))
	assert.Empty(t, h.problems(now))

	results := []error{errors.New("no\nluck"), nil}
	ctx, cancel := context.WithCancel(t.Context())
	step, went := make(chan struct{}), make(chan struct{})
	task := h.watch(periodic{"look", time.Millisecond, func() error {
		<-step
		if len(results) == 0 {
			cancel()
			return nil
		}
		err := results[0]
		results = results[1:]
		return err
	}, slog.New(slog.DiscardHandler), nil})
	go func() { _ = task.run(ctx); close(went) }()

	at := func(later time.Duration, want ...string) {
		t.Helper()
		require.Eventually(t, func() bool {
			return assert.ObjectsAreEqual(append([]string{}, want...), h.problems(now.Add(later)))
		}, 20*time.Second, time.Millisecond, "%v", h.problems(now.Add(later)))
	}
	at(time.Second)
	require.Eventually(t, func() bool { return len(h.problems(now.Add(time.Hour))) == 1 }, 20*time.Second, time.Millisecond)
	assert.Regexp(t, `^look: no end for (1h0m0s|59m\d\ds)$`, h.problems(now.Add(time.Hour))[0])
	step <- struct{}{}
	at(0, "look: no; luck")
	step <- struct{}{}
	at(0)
	close(step) // it may look once more before it sees the end of ctx
	<-went

	h.lose([]string{"a port"})
	assert.Equal(t, []string{"a port"}, h.problems(now))
}

// askHealth is what a monitor asks.
func askHealth(t *testing.T, socket string) (int, healthResponse) {
	t.Helper()
	resp, err := socketClient(socket).Get("http://portolan/Plugin.Health")
	require.NoError(t, err)
	defer resp.Body.Close()
	var r healthResponse
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&r))
	return resp.StatusCode, r
}

func TestHealthOfADaemon(t *testing.T) {
	d := startDaemon(t)
	defer d.stop(t)
	require.Eventually(t, func() bool { status, _ := askHealth(t, d.socket); return status == http.StatusOK }, 20*time.Second, 5*time.Millisecond)
	_, r := askHealth(t, d.socket)
	assert.Equal(t, healthResponse{Healthy: true, Problems: []string{}}, r)
}

func TestADaemonWithoutItsStateIsNotWell(t *testing.T) {
	dir := shortDir(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "state.json"), []byte("{"), 0o600))
	d := startDaemon(t, "--state-dir", dir)
	defer d.stop(t)
	require.Eventually(t, func() bool { _, r := askHealth(t, d.socket); return !strings.Contains(r.Err, "being restored") }, 20*time.Second, 5*time.Millisecond)
	status, r := askHealth(t, d.socket)
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.False(t, r.Healthy)
	assert.Contains(t, r.Err, "the state was damaged, and the daemon has begun without it: "+dir+"/state.json.damaged-")
}

// The socket is there before state is restored, and a service is ready after.
func TestReadinessComesAfterTheSocket(t *testing.T) {
	m := systemdtest.New(t)
	t.Setenv("NOTIFY_SOCKET", m.Address())
	d := startDaemon(t)
	defer d.stop(t)
	requireSaid(t, m, "READY=1", 1)
	status, r := askHealth(t, d.socket)
	assert.Equal(t, http.StatusOK, status, "who is ready is restored: %v", r)
}
