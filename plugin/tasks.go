package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/portolan/portolan/driver"
)

// A task runs until its context ends and then returns nil, after everything
// that it started has ended. An error ends the daemon.
type task interface {
	run(ctx context.Context) error
}

// periodic does something every so often, and soon after wake has received. What
// it does may fail: that is said once, until the error changes or goes away.
type periodic struct {
	name  string
	every time.Duration
	do    func() error
	log   *slog.Logger
	wake  <-chan struct{} // nil: by the clock alone
}

// settle is how long a task waits for more of what has woken it: changes come
// in heaps.
const settle = 100 * time.Millisecond

func (p periodic) run(ctx context.Context) error {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.wake:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settle):
			}
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

// bodyWithin is how long a client of the daemon may take to send a request. An
// engine sends all ports of two protocols, 14 MB, within a second.
const bodyWithin = 30 * time.Second

// timely ends the wait for a client that does not send what it has announced.
// (The server's own ReadTimeout counts from the start of a connection, which some
// clients make long before they need it.)
func timely(next http.Handler, within time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			conn := http.NewResponseController(w)
			if err := conn.SetReadDeadline(time.Now().Add(within)); err == nil {
				r.Body = &timelyBody{r.Body, conn}
			}
		}
		next.ServeHTTP(w, r)
	})
}

// timelyBody takes the limit away at its end: the connection has other requests.
type timelyBody struct {
	io.ReadCloser
	conn *http.ResponseController
}

func (b *timelyBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		_ = b.conn.SetReadDeadline(time.Time{})
	}
	return n, err
}

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
		ConnContext: withCaller,
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

// withCaller tells the calls of a connection when the process at its other end
// began, where that can be seen: a managed plugin has a pid namespace of its own.
func withCaller(ctx context.Context, conn net.Conn) context.Context {
	cred, err := peer(conn)
	if err != nil || cred.Pid == 0 {
		return ctx
	}
	began, err := processStart(int(cred.Pid))
	if err != nil {
		return ctx
	}
	return driver.WithCaller(ctx, began)
}

// serve ends when srv is shut down or its listener breaks.
func serve(srv *http.Server, ln net.Listener, served chan<- error) { served <- srv.Serve(ln) }
