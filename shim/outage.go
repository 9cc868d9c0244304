package shim

import (
	"context"
	"errors"
	"log/slog"
	"sync"
)

// outage logs changes between answering and not, instead of every failure. At
// the beginning it takes the other side to be answering.
type outage struct {
	log        *slog.Logger
	lost, back string

	mu   sync.Mutex // guards below
	down bool
}

// note takes the result of one attempt. One that its own caller has given up
// says nothing.
func (o *outage) note(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	o.mu.Lock()
	changed := o.down != (err != nil)
	o.down = err != nil
	o.mu.Unlock()
	switch {
	case changed && err != nil:
		o.log.Warn(o.lost, "err", err)
	case changed:
		o.log.Info(o.back)
	}
}
