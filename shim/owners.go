package shim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// tellTime bounds one look at engine and daemon, and inspectTime that at one
// container, which may be stuck.
const (
	tellTime    = 30 * time.Second
	inspectTime = 5 * time.Second
)

// maxIDs is how many containers are asked for by ID; for more than that it is all
// of them.
const maxIDs = 100

// agenda are the containers whose owners are to be told. However many events
// come, it is no longer than the list of containers.
type agenda struct {
	more chan struct{} // has something while there is anything on it

	mu  sync.Mutex // guards below
	all bool
	ids map[string]bool
}

func newAgenda() *agenda { return &agenda{more: make(chan struct{}, 1), ids: map[string]bool{}} }

func (a *agenda) add(id string) { a.put(false, id) }

func (a *agenda) addAll() { a.put(true) }

func (a *agenda) put(all bool, ids ...string) {
	a.mu.Lock()
	a.all = a.all || all
	for _, id := range ids {
		a.ids[id] = true
	}
	a.mu.Unlock()
	select {
	case a.more <- struct{}{}:
	default:
	}
}

// take empties it. What was on it is either all that run or those with ids.
func (a *agenda) take() (all bool, ids []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	all, ids = a.all || len(a.ids) > maxIDs, slices.Collect(maps.Keys(a.ids))
	a.all = false
	clear(a.ids)
	return all, ids
}

// tellOwners tells the daemon what it does not know of containers.
func (s *Shim) tellOwners(ctx context.Context, all bool, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	if all {
		var err error
		if ids, err = s.engine.running(ctx); err != nil {
			return err
		}
	}
	var errs []error
	var containers []inspected
	for _, id := range ids {
		c, err := s.engine.inspect(ctx, id)
		switch {
		case err == nil:
			containers = append(containers, c)
		case !errors.Is(err, errNotFound): // else it is gone
			errs = append(errs, err)
		}
	}
	if len(containers) == 0 {
		return errors.Join(errs...)
	}
	// The daemon last: it knows every endpoint that the engine has shown.
	known, err := s.cfg.Daemon.Endpoints(ctx)
	s.daemonUp.note(err)
	if err != nil {
		return fmt.Errorf("ask the daemon for its endpoints: %w", err)
	}
	for _, c := range containers {
		owner := Owner{c.ID, strings.TrimPrefix(c.Name, "/")}
		for _, n := range c.NetworkSettings.Networks {
			ep, ours := known[n.EndpointID]
			if !ours || ep.Owner == owner {
				continue
			}
			if err := s.cfg.Daemon.SetOwner(ctx, n.EndpointID, owner); err != nil {
				errs = append(errs, fmt.Errorf("tell the owner of endpoint %.12s: %w", n.EndpointID, err))
			}
		}
	}
	return errors.Join(errs...)
}

// running are the IDs of the containers that run. What else the list says of
// them may be old: the engine gives notice of a new name or endpoint before it
// lists it.
func (e *engine) running(ctx context.Context) (ids []string, err error) {
	var list []struct {
		ID string `json:"Id"`
	}
	if err := e.get(ctx, "/containers/json", &list); err != nil {
		return nil, err
	}
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids, nil
}

// inspected is what is read of a container.
type inspected struct {
	ID              string `json:"Id"`
	Name            string // with a leading slash
	NetworkSettings struct {
		Networks map[string]struct{ EndpointID string }
	}
}

// inspect looks at a container once whatever changes it has ended. The error
// wraps errNotFound where there is none.
func (e *engine) inspect(ctx context.Context, id string) (c inspected, err error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTime)
	defer cancel()
	return c, e.get(ctx, "/containers/"+url.PathEscape(id)+"/json", &c)
}
