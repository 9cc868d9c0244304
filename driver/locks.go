package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"
)

// everyone is the weight of an exclusive lock; a shared one weighs 1.
const everyone = 1 << 20

// locks are reader/writer locks by name, whose waits end with a context. The
// zero locks is ready.
type locks struct {
	mu sync.Mutex // guards below
	m  map[string]*namedLock
}

type namedLock struct {
	sem   *semaphore.Weighted
	users int // holders and waiters; the last one forgets the lock
}

// share takes the lock of name beside others who share it.
func (l *locks) share(ctx context.Context, name string) (release func(), err error) {
	return l.acquire(ctx, name, 1)
}

// own takes the lock of name for the caller alone.
func (l *locks) own(ctx context.Context, name string) (release func(), err error) {
	return l.acquire(ctx, name, everyone)
}

func (l *locks) acquire(ctx context.Context, name string, weight int64) (func(), error) {
	k := l.enter(name)
	if err := k.sem.Acquire(ctx, weight); err != nil {
		l.leave(name, k)
		return nil, fmt.Errorf("another call for %.64s is not finished, try again: %w", name, err)
	}
	return func() {
		k.sem.Release(weight)
		l.leave(name, k)
	}, nil
}

func (l *locks) enter(name string) *namedLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	k, ok := l.m[name]
	if !ok {
		if l.m == nil {
			l.m = make(map[string]*namedLock)
		}
		k = &namedLock{sem: semaphore.NewWeighted(everyone)}
		l.m[name] = k
	}
	k.users++
	return k
}

func (l *locks) leave(name string, k *namedLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.m, name)
	}
}

// hold takes the locks of a call for one endpoint. The sandbox is the one the
// endpoint has joined, or with sandbox not empty that one.
func (d *Driver) hold(ctx context.Context, r endpointRequest, sandbox string) (release func(), err error) {
	var held undo
	free := func() { _ = held.run(nil) }
	defer func() {
		if err != nil {
			free()
		}
	}()
	take := func(unlock func(), err error) error {
		if err == nil {
			held.add(func() error { unlock(); return nil })
		}
		return err
	}
	if err = take(d.networks.share(ctx, r.NetworkID)); err != nil {
		return nil, err
	}
	if err = take(d.endpoints.own(ctx, r.EndpointID)); err != nil {
		return nil, err
	}
	if ep, ok := d.store.Endpoint(r.EndpointID); sandbox == "" && ok {
		sandbox = ep.Sandbox
	}
	if sandbox == "" {
		return free, nil
	}
	if err = take(d.sandboxes.own(ctx, sandbox)); err != nil {
		return nil, err
	}
	return free, nil
}

// undo is what takes back the steps done so far.
type undo []func() error

func (u *undo) add(step func() error) { *u = append(*u, step) }

// run takes back the steps, last first, and returns err joined with whatever
// went wrong meanwhile.
func (u undo) run(err error) error {
	for _, step := range slices.Backward(u) {
		err = errors.Join(err, step())
	}
	return err
}
