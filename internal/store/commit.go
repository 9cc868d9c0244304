package store

import (
	"errors"
	"fmt"
	"os"
)

// errAbandoned is what the changes of a batch get when one of them panics.
var errAbandoned = errors.New("write state: a change in the same write panicked")

// change makes the state after from the state before. A change that changes
// nothing returns the state it was given.
type change struct {
	apply func(*state) (*state, error)
	end   bool  // takes effect even if it cannot be written; apply may run twice
	err   error // read after the batch is done
}

// batch is the changes that one write of the file carries.
type batch struct {
	changes []*change
	done    chan struct{} // closed when err of every change is set
}

// commit applies a change and returns when it is on the disk.
func (s *Store) commit(apply func(*state) (*state, error)) error {
	return s.submit(&change{apply: apply, err: errAbandoned})
}

// end applies a change that tells of what has ended. If it cannot be written
// the file follows later.
func (s *Store) end(apply func(*state) (*state, error)) error {
	return s.submit(&change{apply: apply, end: true, err: errAbandoned})
}

// submit has a change applied and written.
//
// The first to ask opens a batch, waits until the write that is going on, if
// any, has ended, and then does the next for all who joined the batch
// meanwhile; they only wait. There is never more than one open batch, so
// changes are applied in the order of their arrival.
func (s *Store) submit(c *change) error {
	s.mu.Lock()
	b := s.open
	first := b == nil
	if first {
		b = &batch{done: make(chan struct{})}
		s.open = b
	}
	b.changes = append(b.changes, c)
	s.mu.Unlock()

	if !first {
		<-b.done
		return c.err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	defer close(b.done) // also if a change panics: the others must not hang

	s.mu.Lock()
	s.open = nil // whoever comes from here on waits for the next write
	s.mu.Unlock()

	s.flush(b.changes)
	return c.err
}

// flush applies changes, writes the result and sets everyone's err. A change
// that cannot be applied is left out and concerns nobody else. The caller holds
// s.writing.
func (s *Store) flush(changes []*change) {
	before := s.state.Load()
	after := before
	applied := make([]*change, 0, len(changes))
	for _, c := range changes {
		next, err := c.apply(after)
		if err != nil {
			c.err = err
			continue
		}
		after = next
		applied = append(applied, c)
	}
	err := s.write(before, after)
	if err == nil {
		s.state.Store(after)
	}
	for _, c := range applied {
		c.err = err
	}
	if err != nil && !s.closed {
		s.keepEnds(before, applied, err)
	}
}

// keepEnds applies, of changes that could not be written, those that tell of
// what has ended: it has, whatever the disk says.
func (s *Store) keepEnds(before *state, changes []*change, cause error) {
	after := before
	for _, c := range changes {
		if !c.end {
			continue
		}
		next, err := c.apply(after)
		if c.err = err; err == nil {
			after = next
		}
	}
	if after == before {
		return
	}
	s.state.Store(after)
	if !s.behind {
		s.log.Warn("the state file still has what is gone; it will be written as soon as it can be", "dir", s.folder.dir, "err", cause)
	}
	s.behind = true
}

// write makes after the contents of the file in place of before. The caller
// holds s.writing.
func (s *Store) write(before, after *state) error {
	if s.closed {
		return fmt.Errorf("write state in %s: %w", s.folder.dir, os.ErrClosed)
	}
	if before == after && !s.behind {
		return nil
	}
	replaced, err := s.replace(after)
	if err == nil {
		s.behind = false
		return nil
	}
	if replaced {
		// The file has changes that we say have failed. Put back the one of
		// before; if that fails too, the next call tries, whatever it changes.
		_, undo := s.replace(before)
		s.behind = undo != nil
		err = errors.Join(err, undo)
	}
	return fmt.Errorf("write state: %w", err)
}

func (s *Store) replace(st *state) (replaced bool, err error) {
	data, err := encode(st, s.schema)
	if err != nil {
		return false, err
	}
	return s.folder.replace(data)
}
