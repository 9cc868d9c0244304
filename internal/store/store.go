package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
)

// Store is an open state directory. All methods are safe for concurrent use.
// What the getters return is the caller's own, and they never wait for a write.
//
// A method that changes something returns when the change is on the disk. After
// an error nothing has changed, neither in memory nor on the disk; the error
// wraps the errno (ENOSPC, EROFS, …), or os.ErrClosed after Close. A change to
// what is already so is not written.
//
// Those that tell of an end (Retire…, Delete…) are not refused for want of a
// disk that takes them: what has ended has ended. They take effect in memory,
// the log says so, and the file follows with the next change, Sync or Close. A
// crash before that brings the records back.
type Store struct {
	folder  folder
	schema  int
	log     *slog.Logger
	damaged string
	state   atomic.Pointer[state] // stored under writing

	mu   sync.Mutex // guards below; held for moments only
	open *batch     // what the next write will carry, or nil

	writing sync.Mutex // held during a write; guards below
	lock    *os.File
	closed  bool
	behind  bool // the file may be another than state
}

// Close waits for the write that is going on, writes what could not be written
// before, and releases the directory to others. The getters go on working;
// changes are refused. Close is idempotent.
func (s *Store) Close() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.closed {
		return nil
	}
	now := s.state.Load()
	err := s.write(now, now)
	s.closed = true
	return errors.Join(err, s.lock.Close())
}

// Sync writes what could not be written before, if there is anything.
func (s *Store) Sync() error {
	return s.commit(func(st *state) (*state, error) { return st, nil })
}

// Damaged is the path under which Open set a damaged state file aside, or "".
func (s *Store) Damaged() string { return s.damaged }

// Dir is the state directory as it was given to Open.
func (s *Store) Dir() string { return s.folder.dir }

// Networks returns all networks, by ascending ID.
func (s *Store) Networks() []Network { return s.state.Load().networks.all() }

// Network returns the network id, and whether there is one.
func (s *Store) Network(id string) (Network, bool) { return s.state.Load().networks.get(id) }

// PutNetwork stores n in place of the network with its ID, if any. Times lose
// their zone (UTC) and monotonic clock.
func (s *Store) PutNetwork(n Network) error {
	n.Created = n.Created.UTC()
	e, err := newEntry(n)
	if err != nil {
		return fmt.Errorf("put network %.12s: %w", n.ID, err)
	}
	err = s.commit(func(st *state) (*state, error) { return st.withNetwork(e), nil })
	if err != nil {
		return fmt.Errorf("put network %.12s: %w", n.ID, err)
	}
	return nil
}

// RetireNetwork puts the network id back into phase Intent: it is about to go,
// and whoever finds it so goes on with that. Absent is nil.
func (s *Store) RetireNetwork(id string) error {
	err := s.end(func(st *state) (*state, error) {
		n, found := st.networks.get(id)
		if !found {
			return st, nil
		}
		n.Phase = Intent
		e, err := newEntry(n)
		if err != nil {
			return nil, err
		}
		return st.withNetwork(e), nil
	})
	if err != nil {
		return fmt.Errorf("retire network %.12s: %w", id, err)
	}
	return nil
}

// DeleteNetwork removes the network id and all endpoints in it, in one write.
// Removing what is absent is nil.
func (s *Store) DeleteNetwork(id string) error {
	err := s.end(func(st *state) (*state, error) {
		networks, gone := st.networks.without(func(n Network) bool { return n.ID == id })
		endpoints, emptied := st.endpoints.without(func(e Endpoint) bool { return e.Network == id })
		if !gone && !emptied {
			return st, nil
		}
		return &state{networks, endpoints, st.sysctls}, nil
	})
	if err != nil {
		return fmt.Errorf("delete network %.12s: %w", id, err)
	}
	return nil
}

// Endpoints returns all endpoints, tombstones too, by ascending ID.
func (s *Store) Endpoints() []Endpoint { return s.state.Load().endpoints.all() }

// EndpointsOf returns the endpoints of a sandbox, by ID.
func (s *Store) EndpointsOf(sandbox string) []Endpoint {
	return s.state.Load().endpoints.where(func(e Endpoint) bool { return e.Sandbox == sandbox })
}

// Endpoint returns the endpoint id, and whether there is one.
func (s *Store) Endpoint(id string) (Endpoint, bool) { return s.state.Load().endpoints.get(id) }

// PutEndpoint stores e in place of the endpoint with its ID, if any. That its
// network is stored too is the caller's business. Times lose their zone (UTC)
// and monotonic clock.
func (s *Store) PutEndpoint(e Endpoint) error {
	entry, err := newEndpointEntry(e)
	if err != nil {
		return fmt.Errorf("put endpoint %.12s: %w", e.ID, err)
	}
	err = s.commit(func(st *state) (*state, error) { return st.withEndpoint(entry), nil })
	if err != nil {
		return fmt.Errorf("put endpoint %.12s: %w", e.ID, err)
	}
	return nil
}

// UpdateEndpoint lets f change the endpoint id; nothing else changes it between
// f and the write. It returns false if there is no such endpoint. What f does to
// the ID has no effect.
//
// f may run in the goroutine of another caller, where it would panic too. It may
// call the getters and no other method.
func (s *Store) UpdateEndpoint(id string, f func(*Endpoint)) (found bool, err error) {
	err = s.commit(updateEndpoint(id, f, &found))
	if err != nil {
		return found, fmt.Errorf("update endpoint %.12s: %w", id, err)
	}
	return found, nil
}

// UpdateSandbox is UpdateEndpoint for every endpoint of a sandbox, in one write.
func (s *Store) UpdateSandbox(sandbox string, f func(*Endpoint)) error {
	err := s.commit(func(st *state) (*state, error) {
		for _, e := range st.endpoints.where(func(e Endpoint) bool { return e.Sandbox == sandbox }) {
			next, err := updateEndpoint(e.ID, f, new(bool))(st)
			if err != nil {
				return nil, err
			}
			st = next
		}
		return st, nil
	})
	if err != nil {
		return fmt.Errorf("update endpoints of sandbox %s: %w", sandbox, err)
	}
	return nil
}

// RetireEndpoint is UpdateEndpoint for what the endpoint has lost. f may run
// twice, on two copies. Absent is nil.
func (s *Store) RetireEndpoint(id string, f func(*Endpoint)) error {
	var found bool
	if err := s.end(updateEndpoint(id, f, &found)); err != nil {
		return fmt.Errorf("retire endpoint %.12s: %w", id, err)
	}
	return nil
}

func updateEndpoint(id string, f func(*Endpoint), found *bool) func(*state) (*state, error) {
	return func(st *state) (*state, error) {
		e, ok := st.endpoints.get(id)
		if *found = ok; !ok {
			return st, nil
		}
		f(&e)
		e.ID = id
		entry, err := newEndpointEntry(e)
		if err != nil {
			return nil, err
		}
		return st.withEndpoint(entry), nil
	}
}

// DeleteEndpoint removes the endpoint id. Removing what is absent is nil.
func (s *Store) DeleteEndpoint(id string) error {
	err := s.end(func(st *state) (*state, error) {
		endpoints, gone := st.endpoints.without(func(e Endpoint) bool { return e.ID == id })
		if !gone {
			return st, nil
		}
		return &state{st.networks, endpoints, st.sysctls}, nil
	})
	if err != nil {
		return fmt.Errorf("delete endpoint %.12s: %w", id, err)
	}
	return nil
}

func newEndpointEntry(e Endpoint) (*entry[Endpoint], error) {
	e.Created = e.Created.UTC()
	e.Gone = e.Gone.UTC()
	return newEntry(e)
}

func (s *state) withNetwork(e *entry[Network]) *state {
	networks, changed := s.networks.with(e)
	if !changed {
		return s
	}
	return &state{networks, s.endpoints, s.sysctls}
}

func (s *state) withEndpoint(e *entry[Endpoint]) *state {
	endpoints, changed := s.endpoints.with(e)
	if !changed {
		return s
	}
	return &state{s.networks, endpoints, s.sysctls}
}

// Sysctls returns the sysctls that were changed, in the order they were put.
func (s *Store) Sysctls() []Sysctl { return slices.Clone(s.state.Load().sysctls) }

// PutSysctl stores c. If its path is stored already, it keeps its place and its
// Old, which is what the host had before us, and takes New from c.
func (s *Store) PutSysctl(c Sysctl) error {
	if c.Path == "" {
		return errors.New("put sysctl: no path")
	}
	err := s.commit(func(st *state) (*state, error) {
		i := slices.IndexFunc(st.sysctls, func(o Sysctl) bool { return o.Path == c.Path })
		if i >= 0 && st.sysctls[i].New == c.New {
			return st, nil
		}
		sysctls := slices.Clone(st.sysctls)
		if i >= 0 {
			sysctls[i].New = c.New
		} else {
			sysctls = append(sysctls, c)
		}
		return &state{st.networks, st.endpoints, sysctls}, nil
	})
	if err != nil {
		return fmt.Errorf("put sysctl %s: %w", c.Path, err)
	}
	return nil
}

// DeleteSysctl removes the sysctl path. Removing what is absent is nil.
func (s *Store) DeleteSysctl(path string) error {
	err := s.end(func(st *state) (*state, error) {
		sysctls := slices.DeleteFunc(slices.Clone(st.sysctls), func(o Sysctl) bool { return o.Path == path })
		if len(sysctls) == len(st.sysctls) {
			return st, nil
		}
		return &state{st.networks, st.endpoints, sysctls}, nil
	})
	if err != nil {
		return fmt.Errorf("delete sysctl %s: %w", path, err)
	}
	return nil
}
