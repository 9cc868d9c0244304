package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"time"

	"github.com/portolan/portolan/bench/load"
	"github.com/portolan/portolan/internal/enginetest"
)

const (
	sustainedTime   = time.Minute
	sustainedWindow = 5 * time.Second
)

// endurance is one proxy under one kind of clients, for a minute.
type endurance struct {
	peer    string
	orderly bool
	failed  string
	rates   []float64 // connections a second, by window
	lost    int64
	cost    cost
}

func (r endurance) clients() string {
	if r.orderly {
		return "close"
	}
	return "reset"
}

// sustainedFigures are what becomes of a rate.
type sustainedFigures struct {
	window time.Duration
	runs   []endurance
}

// measureSustained connects for a minute on end, by each proxy.
func measureSustained(ctx context.Context, s *session, c config) (figures, error) {
	if err := link(c.bin); err != nil {
		return nil, err
	}
	l, err := newLab(ctx, s, c, nftables)
	if err != nil {
		return nil, err
	}
	sub := l.subjects[nftables]
	if err := makeRoom(sub.engine); err != nil {
		return nil, err
	}
	v4, _, err := l.serve(sub, sub.network, 7100)
	if err != nil {
		return nil, err
	}
	spec := load.Spec{Kind: load.Connect, Clients: 32, For: sustainedTime, Every: sustainedWindow}
	if c.quick {
		spec.For, spec.Every = sustainedTime/6, sustainedWindow/5
	}
	f := &sustainedFigures{window: spec.Every}
	for _, p := range peers(c.bin) {
		if !slices.Contains([]string{"docker-proxy", ourProxy, "HAProxy"}, p.name) {
			continue
		}
		var pids []int
		_, failed := exec.LookPath(p.program)
		if failed == nil {
			pids, failed = l.startPeer(s, sub.engine, p, v4)
		}
		for _, orderly := range []bool{false, true} {
			run := endurance{peer: p.name, orderly: orderly}
			if failed == nil {
				failed = run.measure(sub.engine, spec, p.port, pids)
			}
			if failed != nil {
				run.failed = reason(failed)
			}
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			l.log("sustained: %s, clients that %s: %.0f %s", p.name, run.clients(), run.rates, run.failed)
			f.runs = append(f.runs, run)
		}
	}
	return f, nil
}

// makeRoom keeps the kernel's tables from filling up within the minute. Sockets
// of clients in TIME_WAIT would push out those of the proxies, whose ports they
// give back so. Each connection through a proxy is two entries of the conntrack
// table, whose size is the machine's, and a full table drops what is new.
func makeRoom(e *enginetest.Engine) error {
	_, err := enginetest.Run(e.Command("sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=4000000",
		"net.netfilter.nf_conntrack_tcp_timeout_time_wait=5", "net.netfilter.nf_conntrack_tcp_timeout_close=5"))
	return err
}

func (r *endurance) measure(e *enginetest.Engine, spec load.Spec, port peerPort, pids []int) error {
	spec.To, spec.Orderly = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)), r.orderly
	if err := carries(e, spec); err != nil {
		return err
	}
	if err := emptyTimeWait(e); err != nil {
		return err
	}
	begin, err := startCost(pids)
	if err != nil {
		return err
	}
	result, err := client(e.Host, spec)
	if err != nil {
		return err
	}
	if r.cost, err = begin.since(pids, float64(result.Answers)); err != nil {
		return err
	}
	r.lost = result.Lost
	// What arrived after the last whole window is no window.
	for i := range int(spec.For / spec.Every) {
		rate := 0.0
		if i < len(result.Windows) {
			rate = float64(result.Windows[i]) / spec.Every.Seconds()
		}
		r.rates = append(r.rates, rate)
	}
	return nil
}

// held is the last window's rate by the first's.
func (r endurance) held() float64 {
	if len(r.rates) == 0 || r.rates[0] == 0 {
		return 0
	}
	return r.rates[len(r.rates)-1] / r.rates[0]
}

func (r endurance) mean() float64 {
	sum := 0.0
	for _, rate := range r.rates {
		sum += rate
	}
	return sum / float64(max(len(r.rates), 1))
}

func (f *sustainedFigures) tables() string {
	t := table{head: []string{"proxy", "clients", "first window", "lowest", "last window", "last / first", "mean", "connections that failed", "processor time: the proxy's", "the machine's"}}
	for _, r := range f.runs {
		if r.failed != "" {
			t.add(r.peer, r.clients(), "failed: "+r.failed)
			continue
		}
		t.add(r.peer, r.clients(), perSecond(r.rates[0]), perSecond(slices.Min(r.rates)), perSecond(r.rates[len(r.rates)-1]),
			fmt.Sprintf("%.2f", r.held()), perSecond(r.mean()), grouped(int(r.lost)), micros(r.cost.own), micros(r.cost.machine))
	}
	return section(fmt.Sprintf("Connections a second, each with a request, without a pause, in windows of %.0f s", f.window.Seconds()), t)
}

func perSecond(rate float64) string { return grouped(int(rate + 0.5)) }

func (f *sustainedFigures) goals() (goals []goal) {
	for _, r := range f.runs {
		if r.peer == ourProxy {
			goals = append(goals, atLeast(fmt.Sprintf("%s, clients that %s: the last window at least 0.9 of the first", r.peer, r.clients()), r.held(), 0.9))
		}
	}
	return goals
}

func (f *sustainedFigures) charts() []chart {
	c := chart{File: "sustained", Title: "New connections a second by a userland proxy", X: "seconds", Y: "connections a second"}
	for _, r := range f.runs {
		if r.failed != "" {
			continue
		}
		l := line{Name: r.peer + ", clients " + r.clients(), Group: r.peer, Dashed: r.orderly}
		for i, rate := range r.rates {
			l.Points = append(l.Points, [2]float64{(float64(i) + 0.5) * f.window.Seconds(), rate})
		}
		c.Lines = append(c.Lines, l)
	}
	return []chart{c}
}
