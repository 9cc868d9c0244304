package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestPeriodicSaysTheSameErrorOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	results := []error{nil, errors.New("no luck"), errors.New("no luck"), errors.New("bad luck"), nil, nil}
	var log bytes.Buffer
	p := periodic{
		name:  "test",
		every: time.Millisecond,
		do: func() error {
			if len(results) == 0 {
				cancel()
				return nil
			}
			err := results[0]
			results = results[1:]
			return err
		},
		log: slog.New(&lineHandler{out: &log}),
	}
	require.NoError(t, p.run(ctx))
	assert.Equal(t, []string{
		"task failed; it will be tried again test 1ms no luck",
		"task failed; it will be tried again test 1ms bad luck",
		"task works again test",
	}, strings.Split(strings.TrimSpace(log.String()), "\n"))
}

// stuck is a server with a call that is being served when the context ends.
func stuck(t *testing.T, finish time.Duration, until <-chan struct{}) (answer <-chan error, ended <-chan error, cancel func()) {
	t.Helper()
	path := filepath.Join(shortDir(t), "portolan.sock")
	ln, err := listenSocket(path, ownerOnly)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	began := make(chan struct{})
	s := server{ln, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(began)
		select {
		case <-until:
		case <-r.Context().Done():
		}
	}), finish, slog.New(slog.DiscardHandler)}
	served, answered := make(chan error, 1), make(chan error, 1)
	go report(ctx, s.run, served)
	go report(ctx, func(context.Context) error {
		return (&client{socket: path, http: socketClient(path)}).call(context.Background(), "List", nil, nil)
	}, answered)
	<-began
	return answered, served, cancel
}

func TestAStoppingServerFinishesItsCalls(t *testing.T) {
	defer goleak.VerifyNone(t)
	until := make(chan struct{})
	answer, ended, cancel := stuck(t, time.Hour, until)
	cancel()
	close(until)
	require.NoError(t, <-answer)
	require.NoError(t, <-ended)
}

func TestAStoppingServerCutsOffWhatDoesNotFinish(t *testing.T) {
	defer goleak.VerifyNone(t)
	answer, ended, cancel := stuck(t, time.Millisecond, nil)
	cancel()
	<-answer // an error, or the nothing that the handler wrote in time
	require.NoError(t, <-ended)
}

func TestAServerWhoseListenerBreaksEndsTheDaemon(t *testing.T) {
	ln, err := listenSocket(filepath.Join(shortDir(t), "portolan.sock"), ownerOnly)
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	err = server{ln, http.NotFoundHandler(), time.Hour, slog.New(slog.DiscardHandler)}.run(context.Background())
	require.ErrorIs(t, err, net.ErrClosed)
}
