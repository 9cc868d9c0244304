package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// tellTime bounds one look at engine and daemon.
const tellTime = 30 * time.Second

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

// tellOwners tells the daemon what it does not know of containers that run.
func (s *Shim) tellOwners(ctx context.Context, all bool, ids []string) error {
	if all {
		ids = nil
	} else if len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	// The engine first: the daemon knows every endpoint that the engine shows.
	containers, err := s.engine.running(ctx, ids)
	if err != nil || len(containers) == 0 {
		return err
	}
	known, err := s.cfg.Daemon.Endpoints(ctx)
	s.daemonUp.note(err)
	if err != nil {
		return fmt.Errorf("ask the daemon for its endpoints: %w", err)
	}
	var errs []error
	for _, c := range containers {
		name, err := s.engine.name(ctx, c)
		if errors.Is(err, errNotFound) {
			continue // gone
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		owner := Owner{c.ID, name}
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

// listed is what is read of a container in a list.
type listed struct {
	ID              string `json:"Id"`
	Names           []string
	NetworkSettings struct {
		Networks map[string]struct{ EndpointID string }
	}
}

// names are the container's own: one, or two while it is being renamed. A
// container that others link to is also listed as /other/alias.
func (c listed) names() (own []string) {
	for _, n := range c.Names {
		if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
			own = append(own, n)
		}
	}
	return own
}

// name is a container's name. The engine gives notice of a rename and lists the
// old name beside the new one for a moment more; inspecting waits for its end.
// The error wraps errNotFound where there is no such container any more.
func (e *engine) name(ctx context.Context, c listed) (string, error) {
	if own := c.names(); len(own) == 1 {
		return own[0], nil
	}
	var inspected struct{ Name string }
	err := e.get(ctx, "/containers/"+url.PathEscape(c.ID)+"/json", &inspected)
	return strings.TrimPrefix(inspected.Name, "/"), err
}

// running are the containers that run, of those given unless that is nil.
func (e *engine) running(ctx context.Context, ids []string) (list []listed, err error) {
	query := ""
	if ids != nil {
		text, err := json.Marshal(map[string][]string{"id": ids})
		if err != nil {
			return nil, err
		}
		query = "?filters=" + url.QueryEscape(string(text))
	}
	return list, e.get(ctx, "/containers/json"+query, &list)
}
