package shim

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// askTime is how long a request waits for the daemon, which answers within a
// millisecond unless it is stuck.
const askTime = time.Second

// answer is the daemon's to a question for its endpoints.
type answer struct {
	endpoints map[string]Endpoint
	err       error
}

// stuckTime is how long a request waits for a daemon that has not answered the
// last one: listing a hundred containers one by one is not to take minutes.
const stuckTime = 20 * time.Millisecond

var errStuck = errors.New("the daemon has not answered for a while")

// ask asks the daemon for its endpoints while the caller does something else.
// What it returns waits for the answer, askTime at most in all, and is called
// once or never.
func (s *Shim) ask(ctx context.Context) func() (map[string]Endpoint, error) {
	stuck := s.stuck.Load()
	if stuck && !s.probing.CompareAndSwap(false, true) {
		// Somebody else is finding out whether it answers again.
		return func() (map[string]Endpoint, error) { return nil, errStuck }
	}
	patience := askTime
	if stuck {
		patience = stuckTime
		ctx = context.WithoutCancel(ctx) // for the others, too
	}
	asking, cancel := context.WithTimeout(ctx, askTime)
	answers := make(chan answer, 1)
	go func() {
		defer cancel()
		answers <- s.askDaemon(asking, stuck)
	}()
	deadline := time.Now().Add(patience)
	return func() (map[string]Endpoint, error) {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		select {
		case a := <-answers:
			return a.endpoints, a.err
		case <-timer.C:
			return nil, errStuck
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// askDaemon also remembers whether it answers.
func (s *Shim) askDaemon(ctx context.Context, probe bool) answer {
	endpoints, err := s.cfg.Daemon.Endpoints(ctx)
	s.daemonUp.note(err)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		s.stuck.Store(true)
	case ctx.Err() == nil: // an error at once is soon over
		s.stuck.Store(false)
	}
	if probe {
		s.probing.Store(false)
	}
	return answer{endpoints, err}
}

// fill is a rewrite that edits a response by what the daemon, asked at once,
// knows. Where it does not answer the response stays as it is.
func (s *Shim) fill(ctx context.Context, edit func(body []byte, endpoints map[string]Endpoint) []byte) *rewrite {
	wait := s.ask(ctx)
	return &rewrite{status: http.StatusOK, edit: func(body []byte) []byte {
		endpoints, err := wait()
		if err != nil || len(endpoints) == 0 {
			return nil
		}
		return edit(body, endpoints)
	}}
}
