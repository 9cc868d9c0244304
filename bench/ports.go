package main

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// portFigures are what publishing costs.
type portFigures struct {
	subjects  []*subject // by the places in a lab
	rows      []row
	conntrack conntrack
}

func (f *portFigures) tables() string {
	return f.main() + f.pairs() + f.daemonMemory() + f.calls()
}

// main is a line for each set of ports and each subject.
func (f *portFigures) main() string {
	t := table{head: []string{"ports", "network", "start", "over the floor", "remove", "over the floor", "processes", "docker-proxy memory", "daemon peak", "kernel memory", "taken from the host", "runs"}}
	for _, row := range f.rows {
		floor := row.samples[f.subjects[floorPlugin]]
		for place, sub := range f.subjects {
			if place == docker0 {
				continue // pairs has it
			}
			s := row.samples[sub]
			if why := row.failed[sub]; why != "" {
				t.add(row.set.name, sub.name, "failed: "+why)
			}
			if len(s) == 0 {
				if row.failed[sub] == "" && sub.daemon == nil && row.set.count > 0 {
					t.add(row.set.name, sub.name, "not run")
				}
				continue
			}
			more, less, proxies, peak := "", "", "", ""
			if !sub.floor {
				more, less = millis(over(s, floor, startOf)), millis(over(s, floor, removeOf))
			}
			if sub.proxies {
				proxies = mib(medianOf(s, func(s sample) int64 { return s.processes.memory })) + " MiB"
			}
			if sub.daemon != nil {
				peak = mib(peakOf(s)) + " MiB"
			}
			t.add(row.set.name, sub.name, millis(medianOf(s, startOf)), more, millis(medianOf(s, removeOf)), less,
				grouped(medianOf(s, func(s sample) int { return s.processes.count })), proxies, peak,
				mib(medianOf(s, kernelOf))+" MiB", mib(medianOf(s, func(s sample) int64 { return s.taken }))+" MiB", runs(len(s)))
		}
	}
	return section("Start, removal, processes and memory", t)
}

// runs marks what was run once only.
func runs(n int) string {
	if n == 1 {
		return "1 (once only)"
	}
	return strconv.Itoa(n)
}

func kernelOf(s sample) int64 { return s.kernel }

// peakOf is the daemon's, which lives as long as a row takes.
func peakOf(s []sample) int64 { return s[len(s)-1].removed.peak }

// pairs compares docker run with none and with one port, round by round.
func (f *portFigures) pairs() string {
	t := table{head: []string{"UDP ports", "network", "start, median", "quartiles", "remove, median", "Portolan's start / this, median of pairs", "quartiles", "pairs"}}
	for _, row := range f.rows {
		if row.set.count > 1 {
			continue
		}
		ours := row.samples[f.subjects[nftables]]
		for _, place := range []int{nftables, floorPlugin, builtin, docker0} {
			sub := f.subjects[place]
			s := row.samples[sub]
			if len(s) == 0 {
				continue
			}
			low, high := spread(each(s, startOf))
			cells := []string{row.set.name, sub.name, millis(medianOf(s, startOf)), millis(low) + " – " + millis(high), millis(medianOf(s, removeOf))}
			if place != nftables {
				all := ratios(ours, s, startOf)
				low, high := spread(all)
				cells = append(cells, fmt.Sprintf("%.2f", median(all)), fmt.Sprintf("%.2f – %.2f", low, high), strconv.Itoa(len(all)))
			}
			t.add(cells...)
		}
	}
	return section("`docker run` with no port and with one", t)
}

// daemonMemory is how the nftables daemon grows and shrinks.
func (f *portFigures) daemonMemory() string {
	t := table{head: []string{"ports", "idle, a network and no container", "published, first time", "published, median", "removed, at once", "peak"}}
	for _, row := range f.rows {
		s := row.samples[f.subjects[nftables]]
		if len(s) == 0 {
			continue
		}
		last := s[len(s)-1]
		t.add(row.set.name, mib(row.idle.rss)+" MiB", mib(s[0].daemon.rss)+" MiB",
			mib(medianOf(s, func(s sample) int64 { return s.daemon.rss }))+" MiB", mib(last.removed.rss)+" MiB", mib(peakOf(s))+" MiB")
	}
	return section("Resident memory of the Portolan daemon (nftables, a new process for each line)", t)
}

// calls is where the time of the nftables daemon goes.
func (f *portFigures) calls() string {
	order := []string{"CreateEndpoint", "Join", "ProgramExternalConnectivity", "EndpointOperInfo", "RevokeExternalConnectivity", "Leave", "DeleteEndpoint"}
	head := []string{"call of the engine, ports:"}
	for _, row := range f.rows {
		head = append(head, row.set.name)
	}
	t := table{head: head}
	for _, name := range order {
		cells := []string{name}
		for _, row := range f.rows {
			cell := ""
			if calls := row.calls[name]; len(calls) > 0 && row.failed[f.subjects[nftables]] == "" {
				cell = millis(median(calls))
			}
			cells = append(cells, cell)
		}
		t.add(cells...)
	}
	return section("Time within the Portolan daemon (nftables), by call, medians", t) +
		fmt.Sprintf("\nTo compare: one look through the kernel's conntrack table, which has %s buckets here and next to no entries, takes %s for one family (median of %d).\n",
			grouped(f.conntrack.buckets), millis(median(f.conntrack.reads)), len(f.conntrack.reads))
}

// promise is what start, removal and memory of a set of ports are to be.
type promise struct {
	name          string
	start, remove time.Duration // over the floor; 0 is none
	ratio         float64       // start and removal by the floor's; 0 is none
	peak          int64         // of the daemon, in bytes
}

var promises = map[int]promise{
	1000:              {name: "1,000 ports", start: 300 * time.Millisecond, peak: 40 << 20},
	10000:             {name: "10,000 ports", start: 300 * time.Millisecond, remove: 200 * time.Millisecond, peak: 48 << 20},
	coturnPorts.count: {name: "coturn's ports", start: 500 * time.Millisecond, peak: 48 << 20},
	allPorts.count:    {name: "all ports", ratio: 1.25, peak: 64 << 20},
}

func (f *portFigures) goals() (goals []goal) {
	ours := f.subjects[nftables]
	for _, row := range f.rows {
		s, floor := row.samples[ours], row.samples[f.subjects[floorPlugin]]
		if row.set.count <= 1 {
			ratio := median(ratios(s, row.samples[f.subjects[builtin]], startOf))
			name := map[int]string{0: "no port", 1: "one port"}[row.set.count]
			g := atMost(name+": start at most 1.05 of the built-in bridge's", ratio, 1.05)
			if ratio == 0 {
				g.measured, g.met = "failed", false
			}
			goals = append(goals, g)
			continue
		}
		p, found := promises[row.set.count]
		if !found {
			continue
		}
		first := len(goals)
		if p.start > 0 {
			more := over(s, floor, startOf)
			goals = append(goals, goal{fmt.Sprintf("%s: start at most %s over the floor", p.name, millis(p.start)), millis(more), more <= p.start})
		}
		if p.remove > 0 {
			more := over(s, floor, removeOf)
			goals = append(goals, goal{fmt.Sprintf("%s: removal at most %s over the floor", p.name, millis(p.remove)), millis(more), more <= p.remove})
		}
		if p.ratio > 0 {
			start, remove := median(ratios(s, floor, startOf)), median(ratios(s, floor, removeOf))
			goals = append(goals,
				atMost(fmt.Sprintf("%s: start at most %.2f of the floor's", p.name, p.ratio), start, p.ratio),
				atMost(fmt.Sprintf("%s: removal at most %.2f of the floor's", p.name, p.ratio), remove, p.ratio))
		}
		var peak int64
		if len(s) > 0 {
			peak = peakOf(s)
		}
		goals = append(goals, goal{fmt.Sprintf("%s: daemon at most %.0f MiB resident, at its peak", p.name, float64(p.peak)/(1<<20)), mib(peak) + " MiB", peak <= p.peak})
		if row.failed[ours] != "" || len(s) == 0 {
			for i := range goals[first:] {
				goals[first+i].measured, goals[first+i].met = "failed", false
			}
		}
	}
	return goals
}

// charts are time and memory against ports.
func (f *portFigures) charts() []chart {
	start := chart{File: "start", Title: "docker run -d -p …, until it returns", X: "published ports", Y: "seconds", LogX: true, LogY: true}
	memory := chart{File: "memory", Title: "Memory of the processes that publish", X: "published ports", Y: "MiB", LogX: true, LogY: true}
	for _, place := range []int{builtin, noProxy, nftables, floorPlugin} {
		sub := f.subjects[place]
		took, taken := line{Name: sub.name, Dashed: sub.floor}, line{Name: sub.name}
		for _, row := range f.rows {
			s := row.samples[sub]
			if len(s) == 0 || row.set.count == 0 {
				continue
			}
			x := float64(row.set.count)
			took.Points = append(took.Points, [2]float64{x, medianOf(s, startOf).Seconds()})
			switch {
			case sub.daemon != nil:
				taken.Points = append(taken.Points, [2]float64{x, float64(peakOf(s)) / (1 << 20)})
			case sub.proxies:
				if m := medianOf(s, func(s sample) int64 { return s.processes.memory }); m > 0 {
					taken.Points = append(taken.Points, [2]float64{x, float64(m) / (1 << 20)})
				}
			}
		}
		start.Lines = append(start.Lines, took)
		memory.Lines = append(memory.Lines, taken)
	}
	empty := func(l line) bool { return len(l.Points) == 0 }
	start.Lines, memory.Lines = slices.DeleteFunc(start.Lines, empty), slices.DeleteFunc(memory.Lines, empty)
	return []chart{start, memory}
}
