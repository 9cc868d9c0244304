package main

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/internal/watch"
	"github.com/portolan/portolan/portmap"
)

const (
	// linksEvery is how often bridges and their ports are looked at although the
	// kernel has told of no change.
	linksEvery = 10 * time.Second
	// A fight is something that was put back so often within fightWithin. It is
	// said once in that time, and fightPause is between two repairs.
	fightTimes  = 10
	fightWithin = time.Minute
	fightPause  = checkEvery / 2
)

// keeper has put back what others change: rules, bridges, their ports and their
// settings. It looks when the kernel tells of a change, and by the clock.
type keeper struct {
	d       *driver.Driver
	mapper  portmap.Mapper
	watcher *watch.Watcher // nil: by the clock alone
	log     *slog.Logger

	links   time.Time // when they were looked at last
	did     time.Time // when something was put back last
	repairs repairs
}

// keptRules is a Mapper whose rules nobody else can change.
type keptRules interface{ Kept() bool }

// openKeeper listens to the kernel where it lets us.
func openKeeper(d *driver.Driver, mapper portmap.Mapper, log *slog.Logger) *keeper {
	k := &keeper{d: d, mapper: mapper, log: log}
	var err error
	k.watcher, err = watch.Open(watch.Config{Alias: driver.AliasPrefix, Port: driver.PortPrefix, Log: log})
	if err != nil {
		log.Warn("what others change is found by the clock alone", "every", checkEvery, "err", err)
	}
	return k
}

func (k *keeper) told() <-chan struct{} {
	if k.watcher == nil {
		return nil
	}
	return k.watcher.Told()
}

func (k *keeper) Close() error {
	if k.watcher == nil {
		return nil
	}
	return k.watcher.Close()
}

// look is one time.
func (k *keeper) look() error {
	now := time.Now()
	if k.repairs.fighting(now) && now.Sub(k.did) < fightPause {
		return nil // the clock comes back to it
	}
	change := watch.Change{Links: true}
	var deaf error // what others change is found all the same, by the clock
	if k.watcher != nil {
		m, ok := k.mapper.(keptRules)
		deaf = k.watcher.HearRules(!ok || !m.Kept())
		change = k.watcher.Take()
	}
	links := change.Links || now.Sub(k.links) >= linksEvery
	if links {
		k.links = now
	}
	repaired, err := k.d.Check(links)
	if len(repaired) > 0 {
		k.did = time.Now()
	}
	for _, what := range repaired {
		by := ""
		if what == driver.FirewallRules {
			by = change.RulesBy
		}
		k.repairs.note(k.log, what, by, k.did)
	}
	return errors.Join(err, deaf)
}

// repairs remembers what was put back and when, to say so once, and not again
// and again. The zero value is ready.
type repairs struct {
	mu   sync.Mutex // guards below
	last map[string]*repaired
}

type repaired struct {
	times []time.Time // the last fightTimes
	said  time.Time
	quiet int    // how often since
	by    string // who changed rules last
}

// fights says whether it was put back too often lately.
func (r *repaired) fights(now time.Time) bool {
	return len(r.times) == fightTimes && now.Sub(r.times[0]) < fightWithin
}

func (r *repairs) note(log *slog.Logger, what, by string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[string]*repaired{}
	}
	l := r.last[what]
	if l == nil {
		l = &repaired{}
		r.last[what] = l
	}
	if by != "" {
		l.by = by
	}
	l.times = append(l.times, now)
	l.times = l.times[max(0, len(l.times)-fightTimes):]
	if l.fights(now) && now.Sub(l.said) < fightWithin {
		l.quiet++
		return
	}
	args := []any{"what", what}
	if l.by != "" {
		args = append(args, "rules-changed-by", l.by)
	}
	if l.quiet > 0 {
		args = append(args, "more-often", l.quiet)
	}
	log.Warn("put back what somebody else has changed on this host", args...)
	l.said, l.quiet = now, 0
}

func (r *repairs) fighting(now time.Time) bool { return len(r.problems(now)) > 0 }

// problems are what is undone again and again, until it has been left alone for
// a minute.
func (r *repairs) problems(now time.Time) (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for what, l := range r.last {
		if now.Sub(l.times[len(l.times)-1]) > fightWithin && now.Sub(l.said) > fightWithin {
			delete(r.last, what)
			continue
		}
		if !l.fights(now) {
			continue
		}
		by := ""
		if l.by != "" {
			by = "; rules were last changed by " + l.by
		}
		list = append(list, fmt.Sprintf("something else on this host changes this again and again: %s%s", what, by))
	}
	slices.Sort(list)
	return list
}
