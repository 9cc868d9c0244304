package proxy

import (
	"container/heap"
	"time"
)

// timed is what has something to do at a time. It embeds a timer.
type timed interface {
	at() *timer
	// tick is called when the time has come. It sets another, or none.
	tick()
}

type timer struct {
	due   time.Time
	place int // in deadlines, counted from 1; 0: waits for nothing
}

func (t *timer) at() *timer { return t }

// deadlines are those of a loop who wait for a time, the earliest first. The
// methods in capitals are for package container/heap.
type deadlines []timed

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at().due.Before(d[j].at().due) }

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].at().place, d[j].at().place = i+1, j+1
}

func (d *deadlines) Push(x any) {
	t := x.(timed)
	*d = append(*d, t)
	t.at().place = len(*d)
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	t := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	t.at().place = 0
	return t
}

// set has x wait for due; the zero time is nothing to wait for.
func (d *deadlines) set(x timed, due time.Time) {
	t := x.at()
	t.due = due
	switch {
	case t.place > 0 && due.IsZero():
		heap.Remove(d, t.place-1)
	case t.place > 0:
		heap.Fix(d, t.place-1)
	case !due.IsZero():
		heap.Push(d, x)
	}
}

// reached is the first whose time has come, or nil.
func (d deadlines) reached(now time.Time) timed {
	if len(d) == 0 || d[0].at().due.After(now) {
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
	wait := min(max(d[0].at().due.Sub(now), 0), long)
	return int((wait + time.Millisecond - 1) / time.Millisecond)
}
