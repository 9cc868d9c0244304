package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// The shortest and the longest time between two attempts.
const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// Watch tells the daemon which container has which endpoint: for all that run
// when it starts and whenever it has lost sight of the engine, and from then on
// for each that starts, is renamed or is connected. It returns nil, when ctx
// ends; until then it tries again whatever fails.
func (s *Shim) Watch(ctx context.Context) error {
	var pause backoff
	for {
		err := s.follow(ctx, &pause)
		if ctx.Err() != nil {
			return nil
		}
		s.engineUp.note(err)
		if !pause.wait(ctx) {
			return nil
		}
	}
}

// follow subscribes to the engine's events and works on them until the engine
// ends the subscription.
func (s *Shim) follow(ctx context.Context, pause *backoff) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body, err := s.engine.events(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	s.engineUp.note(nil)
	pause.reset()
	// What happened before is found by looking at all that run, after the
	// subscription, so that nothing falls in between.
	todo := newAgenda()
	todo.addAll()
	var reader sync.WaitGroup
	reader.Go(func() { cancel(readEvents(body, todo)) })
	s.work(ctx, todo)
	_ = body.Close() // ends the reader
	reader.Wait()
	return context.Cause(ctx)
}

// work tells the daemon what is to be told until ctx ends. What fails is tried
// again with all the rest, and what comes meanwhile does not wait for it.
func (s *Shim) work(ctx context.Context, todo *agenda) {
	var pause backoff
	var retry <-chan time.Time // nil while nothing has failed
	for {
		select {
		case <-ctx.Done():
			return
		case <-todo.more:
		case <-retry:
			retry = nil
			todo.addAll()
		}
		all, ids := todo.take()
		err := s.tellOwners(ctx, all, ids)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.cfg.Log.Debug("the daemon does not know all owners yet", "err", err)
			if retry == nil {
				retry = time.After(pause.next())
			}
		case retry == nil:
			pause.reset()
		}
	}
}

// events subscribes to what may change an endpoint's owner. The engine answers
// before it has subscribed us, so it is asked for what happens from now on.
func (e *engine) events(ctx context.Context) (io.ReadCloser, error) {
	now := time.Now()
	query := url.Values{
		"since":   {fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond())},
		"filters": {`{"type":["container","network"],"event":["start","rename","connect"]}`},
	}
	resp, err := e.send(ctx, http.MethodGet, "/events?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// readEvents puts the containers of all events on the agenda. It never waits
// for anything else: the engine drops events for those who do.
func readEvents(events io.Reader, todo *agenda) error {
	decoder := json.NewDecoder(events)
	for {
		var event struct {
			Type  string
			Actor struct {
				ID         string
				Attributes struct {
					Container string `json:"container"`
				}
			}
		}
		if err := decoder.Decode(&event); err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the engine has ended its events")
			}
			return fmt.Errorf("read the engine's events: %w", err)
		}
		id := event.Actor.ID
		if event.Type == "network" {
			id = event.Actor.Attributes.Container
		}
		if id != "" {
			todo.add(id)
		}
	}
}

// backoff is how long to wait before the next attempt: longer each time.
type backoff struct{ last time.Duration }

func (b *backoff) reset() { b.last = 0 }

func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, firstRetry), lastRetry)
	return b.last
}

// wait says whether the time is over, and not ctx.
func (b *backoff) wait(ctx context.Context) bool {
	timer := time.NewTimer(b.next())
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
