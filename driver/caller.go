package driver

import (
	"context"
	"sync"
	"time"

	"github.com/portolan/portolan/internal/store"
)

// callerKey is the key of WithCaller's value.
type callerKey struct{}

// WithCaller tells the calls of a context when the process that makes them
// began. Where it is not told, a dead engine's endpoints are found out later.
func WithCaller(ctx context.Context, began time.Time) context.Context {
	return context.WithValue(ctx, callerKey{}, began)
}

// engines is what is known of the engine that asks.
type engines struct {
	mu    sync.Mutex // guards below
	began time.Time  // when the newest one's process did; zero if unknown
}

// meet notes the process that makes a call, and says whether it is a newer one
// than those before. The times of one process may differ by milliseconds.
func (e *engines) meet(ctx context.Context) (isNew bool) {
	began, ok := ctx.Value(callerKey{}).(time.Time)
	if !ok {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if began.Sub(e.began) < time.Second {
		return false
	}
	e.began = began
	return true
}

// newest is when the newest engine's process began; zero if unknown.
func (e *engines) newest() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.began
}

// outlived says whether the endpoint is of an engine that has ended. Whatever
// that one had yet to do with it is not done any more. Records have c's time.
func (e *engines) outlived(ep store.Endpoint, c clock) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.began.IsZero() && ep.Created.Before(c.at(e.began))
}

// meetEngine buries what died with the engine before this one.
func (d *Driver) meetEngine(ctx context.Context) {
	if d.engines.meet(ctx) {
		d.warn(d.buryDead(ctx, d.clock.now()), "look for endpoints of an engine that has ended", "")
	}
}
