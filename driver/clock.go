package driver

import "time"

// clock tells how old a record is. Records have the time of the day, which
// somebody may set forwards and backwards; what has passed since the daemon
// began is counted by the kernel's monotonic clock instead. So the time of the
// day is read once, when the daemon begins, and goes on evenly from there: a
// clock that is set later buries nobody early and keeps nobody for longer.
//
// A clock that was set back before the daemon began leaves records of the future.
// Restore makes them as old as the daemon.
type clock struct{ began time.Time }

func newClock() clock { return clock{time.Now()} }

// now is the time to write into a record.
func (c clock) now() time.Time { return c.at(time.Now()) }

// at is what the clock shows at a time that has been read since it began: with
// the monotonic reading that time.Now gives, whatever time of the day it has.
func (c clock) at(t time.Time) time.Time { return c.began.Round(0).Add(t.Sub(c.began)) }

// age is how old a record was at a time as of at: nothing, if it was written
// since.
func age(record, now time.Time) time.Duration { return max(0, now.Sub(record)) }
