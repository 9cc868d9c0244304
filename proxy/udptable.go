package proxy

import (
	"sync"
	"time"
)

// flowTable has the flows of one frontend, and their order of use.
type flowTable struct {
	max int

	mu     sync.Mutex // guards below
	flows  map[flowKey]*flow
	recent flow   // head of the ring of flows, latest next and idlest prev
	resets uint64 // how often takeAll was called
	closed bool
}

// lookup finds a flow and marks it as used now. nil means there is none.
func (t *flowTable) lookup(k flowKey) *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.flows[k]
	if f != nil {
		t.touchLocked(f)
	}
	return f
}

// touch marks a flow as used now.
func (t *flowTable) touch(f *flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flows[f.key] == f {
		t.touchLocked(f)
	}
}

// epoch is to be asked before the backend is, and given to insert.
func (t *flowTable) epoch() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.resets
}

// insert adds a flow, and takes out the idlest if there are too many. It is
// false, and nothing is added, if flows were taken out since epoch.
func (t *flowTable) insert(f *flow, epoch uint64) (evicted *flow, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.resets != epoch {
		return nil, false
	}
	if t.flows == nil { // not before the first flow: most frontends never have one
		t.flows = make(map[flowKey]*flow)
		t.recent.prev, t.recent.next = &t.recent, &t.recent
	}
	if len(t.flows) >= t.max {
		evicted = t.recent.prev
		t.removeLocked(evicted)
	}
	t.flows[f.key] = f
	t.linkLocked(f)
	return evicted, true
}

// expire takes f out if it has been idle for that long, or is out already; then
// the time is zero. Else it says when to ask again.
func (t *flowTable) expire(f *flow, idle time.Duration) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flows[f.key] != f {
		return time.Time{}
	}
	if until := f.seen.Add(idle); until.After(time.Now()) {
		return until
	}
	t.removeLocked(f)
	return time.Time{}
}

// remove takes f out if it is still in.
func (t *flowTable) remove(f *flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flows[f.key] == f {
		t.removeLocked(f)
	}
}

// takeAll empties the table, for good if so said, and returns what was in it.
func (t *flowTable) takeAll(closing bool) []*flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resets++
	t.closed = t.closed || closing
	all := make([]*flow, 0, len(t.flows))
	for _, f := range t.flows {
		all = append(all, f)
		t.removeLocked(f)
	}
	return all
}

// takeIdlest takes out the flow that was idle for longest, nil if there is none.
func (t *flowTable) takeIdlest() *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.flows) == 0 {
		return nil
	}
	f := t.recent.prev
	t.removeLocked(f)
	return f
}

func (t *flowTable) touchLocked(f *flow) {
	f.prev.next, f.next.prev = f.next, f.prev
	t.linkLocked(f)
}

func (t *flowTable) linkLocked(f *flow) {
	f.seen = time.Now()
	f.prev, f.next = &t.recent, t.recent.next
	f.prev.next, f.next.prev = f, f
}

func (t *flowTable) removeLocked(f *flow) {
	delete(t.flows, f.key)
	f.prev.next, f.next.prev = f.next, f.prev
	f.prev, f.next = nil, nil
}
