package shim

import (
	"context"
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

// ask asks the daemon for its endpoints while the caller does something else.
// What it returns waits for the answer, askTime at most in all, and is called
// once or never.
func (s *Shim) ask(ctx context.Context) func() (map[string]Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	answers := make(chan answer, 1)
	go s.askDaemon(ctx, cancel, answers)
	return func() (map[string]Endpoint, error) {
		select {
		case a := <-answers:
			return a.endpoints, a.err
		case <-ctx.Done():
		}
		select {
		case a := <-answers: // it came, and ended the context
			return a.endpoints, a.err
		default:
			return nil, ctx.Err()
		}
	}
}

func (s *Shim) askDaemon(ctx context.Context, cancel context.CancelFunc, answers chan<- answer) {
	endpoints, err := s.cfg.Daemon.Endpoints(ctx)
	s.daemonUp.note(err)
	answers <- answer{endpoints, err}
	cancel()
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
