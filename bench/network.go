package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/portolan/portolan/bench/load"
	"github.com/portolan/portolan/internal/enginetest"
)

const (
	networkRounds = 15
	networkTime   = 1500 * time.Millisecond
	networkPort   = 7200
)

// crowd is an engine whose host has so many TCP ports published, of which one
// is asked.
type crowd struct {
	name   string
	place  int // of the subject
	ports  int
	failed string
	lab    *lab
	rates  []float64
	costs  []cost
}

// networkFigures are new connections from a neighbour host.
type networkFigures struct{ crowds []*crowd }

// The places of Portolan's crowds.
const (
	crowdOf1 = iota
	crowdOf10000
	crowdOfAll
)

// measureNetwork has all crowds there at once, each on a host of its own, and
// lets them take turns.
func measureNetwork(ctx context.Context, s *session, c config) (figures, error) {
	f := &networkFigures{crowds: []*crowd{
		crowdOf1:     {name: "Portolan, nftables", place: nftables, ports: 1},
		crowdOf10000: {name: "Portolan, nftables", place: nftables, ports: 10000},
		crowdOfAll:   {name: "Portolan, nftables", place: nftables, ports: 65535},
		{name: "built-in bridge, no proxy", place: noProxy, ports: 1},
		{name: "built-in bridge, no proxy", place: noProxy, ports: 1000},
	}}
	for _, w := range f.crowds {
		if c.quick && w.place == noProxy && w.ports > 1 {
			w.failed = "left out by -quick"
			continue
		}
		began := time.Now()
		if err := w.start(ctx, s, c); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			w.failed = "failed: " + reason(err)
		}
		s.Logf("network: %s, %s ports: %s to set up %s", w.name, grouped(w.ports), millis(time.Since(began)), w.failed)
	}
	for range networkRounds {
		for _, i := range rand.Perm(len(f.crowds)) {
			w := f.crowds[i]
			if w.failed != "" {
				continue
			}
			if err := w.measure(); err != nil {
				if ctx.Err() != nil {
					return nil, err
				}
				w.failed = "failed: " + reason(err)
			}
		}
	}
	return f, nil
}

// start publishes the others first, so that the one that is asked has the last
// of a list of rules.
func (w *crowd) start(ctx context.Context, s *session, c config) (err error) {
	if w.lab, err = newLab(ctx, s, c, w.place); err != nil {
		return err
	}
	sub := w.lab.subjects[w.place]
	// Removing 1,000 ports in order takes longer than all of the measuring.
	s.Cleanup(func() { _ = sub.engine.Kill() })
	if specs := otherPorts(w.ports-1, networkPort); len(specs) > 0 {
		args := []string{"run", "-d", "--network", sub.network}
		for _, spec := range specs {
			args = append(args, "-p", spec)
		}
		if _, err := w.lab.docker(sub.engine, append(args, image, "sleep")...); err != nil {
			return err
		}
	}
	if _, err := w.lab.docker(sub.engine, "network", "inspect", sub.network); err != nil {
		return err
	}
	if _, _, err := w.lab.serve(sub, sub.network, networkPort); err != nil {
		return err
	}
	return enginetest.Poll(20*time.Second, func() error {
		r, err := client(sub.engine.Peer, w.spec(50*time.Millisecond))
		if err == nil && r.Answers == 0 {
			err = errors.New("the published port does not answer the neighbour")
		}
		return err
	})
}

// otherPorts are arguments of docker run -p for n TCP ports, as many as can be
// from firstPort up and the rest below, without those that serve publishes.
func otherPorts(n, served int) (specs []string) {
	add := func(from, to int) {
		if to = min(to, from+n-1); to >= from {
			specs = append(specs, fmt.Sprintf("%d-%d:%[1]d-%[2]d", from, to))
			n -= to - from + 1
		}
	}
	add(firstPort, 65535)
	add(served+2, firstPort-1)
	add(1, served-1)
	return specs
}

func (w *crowd) spec(d time.Duration) load.Spec {
	to := netip.AddrPortFrom(netip.MustParseAddr(enginetest.HostIPv4), networkPort)
	return load.Spec{Kind: load.Connect, Clients: 32, To: to, For: d}
}

func (w *crowd) measure() error {
	begin, err := startCost(nil)
	if err != nil {
		return err
	}
	r, err := client(w.lab.subjects[w.place].engine.Peer, w.spec(networkTime))
	if err != nil {
		return err
	}
	one, err := begin.since(nil, float64(r.Answers))
	w.rates, w.costs = append(w.rates, r.Rate()), append(w.costs, one)
	return errors.Join(err, w.lab.ctx.Err())
}

// against is a crowd's rate by that of its driver's with one port, median of
// rounds, or 0.
func (f *networkFigures) against(w *crowd) float64 {
	for _, one := range f.crowds {
		if one.place != w.place || one.ports != 1 || one.failed != "" || w.failed != "" {
			continue
		}
		var all []float64
		for i := range min(len(w.rates), len(one.rates)) {
			all = append(all, w.rates[i]/one.rates[i])
		}
		return median(all)
	}
	return 0
}

func (f *networkFigures) tables() string {
	t := table{head: []string{"network", "TCP ports", "connections a second", "quartiles", "part of one port's", "processor time: the machine's", "runs"}}
	for _, w := range f.crowds {
		if w.failed != "" {
			t.add(w.name, grouped(w.ports), w.failed)
			continue
		}
		low, high := spread(w.rates)
		machine := make([]time.Duration, len(w.costs))
		for i, one := range w.costs {
			machine[i] = one.machine
		}
		t.add(w.name, grouped(w.ports), perSecond(median(w.rates)), perSecond(low)+" – "+perSecond(high),
			fmt.Sprintf("%.2f", f.against(w)), micros(median(machine)), runs(len(w.rates)))
	}
	return section("New connections from a neighbour host", t)
}

func (f *networkFigures) goals() (goals []goal) {
	for _, i := range []int{crowdOf10000, crowdOfAll} {
		w := f.crowds[i]
		g := atLeast(fmt.Sprintf("from the network, %s TCP ports: at least 0.95 of the connections with one", grouped(w.ports)), f.against(w), 0.95)
		if w.failed != "" {
			g.measured = "failed"
		}
		goals = append(goals, g)
	}
	return goals
}

func (f *networkFigures) charts() []chart {
	c := chart{File: "network", Title: "New connections from a neighbour host", X: "published TCP ports", Y: "connections a second", LogX: true}
	for _, place := range []int{nftables, noProxy} {
		l := line{}
		for _, w := range f.crowds {
			if w.place == place && w.failed == "" {
				l.Name = w.name
				l.Points = append(l.Points, [2]float64{float64(w.ports), median(w.rates)})
			}
		}
		if len(l.Points) > 0 {
			c.Lines = append(c.Lines, l)
		}
	}
	return []chart{c}
}
