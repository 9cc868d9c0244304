package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/internal/firewalld"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/proxy"
)

// How often the tasks look.
const (
	checkEvery = time.Second      // what somebody else may have changed
	retryEvery = time.Second      // ports that were taken when they were to be restored
	reapEvery  = 30 * time.Second // endpoints whose container is gone
)

// serving is a daemon all of whose parts are open: it restores its state,
// answers, and looks after what is published.
type serving struct {
	socket  string
	kind    string        // of the mapper
	watched time.Duration // how often systemd wants to hear; 0 is never
	log     *slog.Logger

	st        *store.Store
	publisher *portmap.Publisher
	driver    *driver.Driver
	keep      *keeper
	zones     *firewalld.Zones
	well      health
}

// run answers by ln until ctx ends, and restores meanwhile: calls of the engine
// wait in the driver.
func (s *serving) run(ctx context.Context, ln net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-ctx.Done()
		tell(s.log, daemon.SdNotifyStopping, "STATUS=stopping; rules stay in place")
		return nil
	})
	tell(s.log, "STATUS=restoring state")
	s.well.also(func(now time.Time) []string { return append(s.keep.repairs.problems(now), s.driver.Cut()...) })
	group.Go(func() error {
		handler := timely(withResources(withHealth(s.driver.Handler(), &s.well)), bodyWithin)
		return server{ln, handler, finishWithin, s.log}.run(ctx)
	})
	group.Go(func() error {
		if err := s.restore(); err != nil {
			return err
		}
		for _, t := range s.tasks() {
			group.Go(func() error { return t.run(ctx) })
		}
		group.Go(func() error { return s.zones.Run(ctx) })
		return nil
	})
	return group.Wait()
}

func (s *serving) restore() error {
	if err := s.driver.Restore(); err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	if err := portmap.RemoveOther(s.kind, s.log); err != nil {
		s.log.Warn("rules of another mapper are left", "err", err)
	}
	s.noteLosses()
	s.well.ready(s.log)
	return nil
}

func (s *serving) noteLosses() { s.well.lose(losses(s.st, s.publisher)) }

// tasks are what is done by the clock, and each but the watchdog's is watched.
func (s *serving) tasks() (list []task) {
	word := told{log: s.log}
	word.status(s.st, &s.well)
	for _, t := range []periodic{
		{"check", checkEvery, s.keep.look, s.log, s.keep.told()},
		{"retry lost ports", retryEvery, func() error { defer s.noteLosses(); return s.publisher.Retry() }, s.log, nil},
		{"reap endpoints", reapEvery, func() error { return s.driver.Reap(time.Now()) }, s.log, nil},
		{"look at the proxies", retryEvery, func() error { proxy.Probe(); return nil }, s.log, nil},
		{"tell systemd", tellEvery, func() error { word.status(s.st, &s.well); return nil }, s.log, nil},
	} {
		list = append(list, s.well.watch(t))
	}
	if s.watched > 0 {
		dog := watchdog{s.socket, s.watched, &s.well, s.log}
		list = append(list, periodic{"tell the watchdog", s.watched, dog.tell, s.log, nil})
	}
	return list
}
