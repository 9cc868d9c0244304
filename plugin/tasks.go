package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// A task runs until its context ends and then returns nil, after everything
// that it started has ended. An error ends the daemon.
type task interface {
	run(ctx context.Context) error
}

// periodic does something every so often. What it does may fail: that is said
// once, until the error changes or goes away.
type periodic struct {
	name  string
	every time.Duration
	do    func() error
	log   *slog.Logger
}

func (p periodic) run(ctx context.Context) error {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		text := ""
		if err := p.do(); err != nil {
			text = err.Error()
		}
		switch {
		case text == last:
		case text == "":
			p.log.Info("task works again", "task", p.name)
		default:
			p.log.Error("task failed; it will be tried again", "task", p.name, "every", p.every, "error", text)
		}
		last = text
	}
}

// finishWithin is how long calls that are being served may take when the daemon
// stops. The engine gives a plugin 10 seconds before it kills it.
const finishWithin = 3 * time.Second

// server serves the driver's calls on a listener, which it closes.
type server struct {
	ln      net.Listener
	handler http.Handler
	finish  time.Duration // how long calls may take after the end of the context
	log     *slog.Logger
}

func (s server) run(ctx context.Context) error {
	// Calls outlive ctx, for a while: they are to be finished, not broken off.
	calls, breakOff := context.WithCancel(context.WithoutCancel(ctx))
	defer breakOff()
	srv := &http.Server{
		BaseContext: func(net.Listener) context.Context { return calls },
		Handler:     s.handler,
		// A client that connects and says nothing holds a goroutine. Some connect
		// before they need it.
		ReadHeaderTimeout: 5 * time.Minute,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go serve(srv, s.ln, served)
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(calls, s.finish)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		s.log.Warn("calls cut off", "error", err)
		breakOff()
		_ = srv.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serve ends when srv is shut down or its listener breaks.
func serve(srv *http.Server, ln net.Listener, served chan<- error) { served <- srv.Serve(ln) }
