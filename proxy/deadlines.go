package proxy

import (
	"container/heap"
	"time"
)

// deadlines are the proxies of a loop that have something to do at a time, the
// earliest first. The methods in capitals are for package container/heap.
type deadlines []*UDP

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].due.Before(d[j].due) }

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i+1, j+1
}

func (d *deadlines) Push(x any) {
	p := x.(*UDP)
	*d = append(*d, p)
	p.place = len(*d)
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	p := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	p.place = 0
	return p
}

// set has p wait for due; the zero time is nothing to wait for.
func (d *deadlines) set(p *UDP, due time.Time) {
	p.due = due
	switch {
	case p.place > 0 && due.IsZero():
		heap.Remove(d, p.place-1)
	case p.place > 0:
		heap.Fix(d, p.place-1)
	case !due.IsZero():
		heap.Push(d, p)
	}
}

// reached is the first whose time has come, or nil.
func (d deadlines) reached(now time.Time) *UDP {
	if len(d) == 0 || d[0].due.After(now) {
		return nil
	}
	return d[0]
}

// timeout is how long the loop may sleep, in milliseconds, -1 for ever. It is
// rounded up, since to wake before the time is to wake twice.
func (d deadlines) timeout(now time.Time) int {
	if len(d) == 0 {
		return -1
	}
	const long = time.Hour // whatever the int's size
	wait := min(max(d[0].due.Sub(now), 0), long)
	return int((wait + time.Millisecond - 1) / time.Millisecond)
}
