package proxy

import "time"

// flowTable has the flows of one frontend, and their order of use.
type flowTable struct {
	flows  map[flowKey]*flow
	recent flow // head of the ring of flows, latest next and idlest prev
}

func (t *flowTable) len() int { return len(t.flows) }

// lookup is nil if there is none.
func (t *flowTable) lookup(k flowKey) *flow { return t.flows[k] }

// insert adds a flow, which is used now.
func (t *flowTable) insert(f *flow, now time.Time) {
	if t.flows == nil { // not before the first flow: most frontends never have one
		t.flows = make(map[flowKey]*flow)
		t.recent.prev, t.recent.next = &t.recent, &t.recent
	}
	t.flows[f.key] = f
	t.link(f, now)
}

// touch marks a flow of the table as used now.
func (t *flowTable) touch(f *flow, now time.Time) {
	f.unlink()
	t.link(f, now)
}

// idlest is the flow that was idle for longest, nil if there is none.
func (t *flowTable) idlest() *flow {
	if len(t.flows) == 0 {
		return nil
	}
	return t.recent.prev
}

// expired is the idlest flow if it was idle for that long.
func (t *flowTable) expired(idle time.Duration, now time.Time) *flow {
	f := t.idlest()
	if f == nil || f.seen.Add(idle).After(now) {
		return nil
	}
	return f
}

// remove takes a flow of the table out.
func (t *flowTable) remove(f *flow) {
	delete(t.flows, f.key)
	f.unlink()
}

func (t *flowTable) link(f *flow, now time.Time) {
	f.seen = now
	f.prev, f.next = &t.recent, t.recent.next
	f.prev.next, f.next.prev = f, f
}

func (f *flow) unlink() {
	f.prev.next, f.next.prev = f.next, f.prev
	f.prev, f.next = nil, nil
}
