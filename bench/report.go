package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// report is one session's figures.
type report struct {
	machine          machine
	engine, portolan string
	started, ended   time.Time
	loadAfter        string
	subjects         []*subject
	rows             []row
	micro            []microbenchmark
	conntrack        conntrack
	shim             *shimFigures // nil where it was not measured, as all below
	paths            []*path
}

// markdown is what goes between the markers.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Machine: %s. Docker engine %s. Portolan: %s. Load average of 1, 5 and 15 minutes: %s before, %s after. %s, in %s.\n",
		r.machine, r.engine, r.portolan, r.machine.loadBefore, r.loadAfter,
		r.started.UTC().Format("2006-01-02 15:04 UTC"), r.ended.Sub(r.started).Round(time.Second))
	sections := []func() string{r.trafficTables, r.shimTable, r.packages}
	if len(r.rows) > 0 {
		sections = append([]func() string{r.ports, r.onePort, r.daemonMemory, r.calls}, sections...)
	}
	for _, section := range append([]func() string{r.goals}, sections...) {
		b.WriteString(section())
	}
	return b.String()
}

// ports is the main table: a line for each number of ports and each subject.
func (r *report) ports() string {
	t := table{head: []string{"UDP ports", "network", "start", "over floor", "remove", "processes", "docker-proxy RSS", "daemon RSS", "daemon peak", "taken from the host", "runs"}}
	for _, row := range r.rows {
		floor := row.samples[r.subjects[floorPlugin]]
		for place, sub := range r.subjects {
			if place == docker0 {
				continue // onePort has it
			}
			s := row.samples[sub]
			if len(s) == 0 {
				if place == builtin {
					t.add(grouped(row.ports), sub.name, "not run")
				}
				continue
			}
			more, proxies, rss, peak := "", "0", "", ""
			if !sub.floor {
				more = millis(over(s, floor, startOf))
			}
			if sub.proxies {
				proxies = mib(medianOf(s, func(s sample) int64 { return s.processes.rss })) + " MiB"
			}
			if sub.daemon != nil {
				rss = mib(medianOf(s, func(s sample) int64 { return s.daemon.rss })) + " MiB"
				peak = mib(s[len(s)-1].removed.peak) + " MiB"
			}
			t.add(grouped(row.ports), sub.name, millis(medianOf(s, startOf)), more, millis(medianOf(s, removeOf)),
				grouped(medianOf(s, func(s sample) int { return s.processes.count })), proxies, rss, peak,
				mib(medianOf(s, func(s sample) int64 { return s.taken }))+" MiB", strconv.Itoa(len(s)))
		}
	}
	return section("Start, removal, processes and memory", t)
}

// onePort compares docker run with one port, pair by pair.
func (r *report) onePort() string {
	one := r.rows[0]
	t := table{head: []string{"one UDP port", "start, median", "quartiles", "remove, median", "Portolan's start / this, median of pairs", "quartiles", "pairs"}}
	ours := one.samples[r.subjects[nftables]]
	for _, place := range []int{nftables, floorPlugin, builtin, docker0} {
		sub := r.subjects[place]
		s := one.samples[sub]
		low, high := spread(each(s, startOf))
		cells := []string{sub.name, millis(medianOf(s, startOf)), millis(low) + " – " + millis(high), millis(medianOf(s, removeOf))}
		if place != nftables {
			all := ratios(ours, s, startOf)
			low, high := spread(all)
			cells = append(cells, fmt.Sprintf("%.2f", median(all)), fmt.Sprintf("%.2f – %.2f", low, high), strconv.Itoa(len(all)))
		}
		t.add(cells...)
	}
	return section("`docker run` with one port", t)
}

// daemonMemory is how the nftables daemon grows and shrinks.
func (r *report) daemonMemory() string {
	t := table{head: []string{"UDP ports", "idle, a network and no container", "published, first time", "published, median", "removed, at once", "peak"}}
	for _, row := range r.rows {
		s := row.samples[r.subjects[nftables]]
		if len(s) == 0 {
			continue
		}
		last := s[len(s)-1]
		t.add(grouped(row.ports), mib(row.idle.rss)+" MiB", mib(s[0].daemon.rss)+" MiB",
			mib(medianOf(s, func(s sample) int64 { return s.daemon.rss }))+" MiB", mib(last.removed.rss)+" MiB", mib(last.removed.peak)+" MiB")
	}
	return section("Resident memory of the Portolan daemon (nftables, a new process for each line)", t)
}

// calls is where the time of the nftables daemon goes.
func (r *report) calls() string {
	order := []string{"CreateEndpoint", "Join", "ProgramExternalConnectivity", "EndpointOperInfo", "RevokeExternalConnectivity", "Leave", "DeleteEndpoint"}
	head := []string{"call of the engine"}
	for _, row := range r.rows {
		head = append(head, plural(row.ports))
	}
	t := table{head: head}
	for _, name := range order {
		cells := []string{name}
		for _, row := range r.rows {
			cells = append(cells, millis(median(row.calls[name])))
		}
		t.add(cells...)
	}
	return section("Time within the Portolan daemon (nftables), by call, medians", t) +
		fmt.Sprintf("\nTo compare: one look through the kernel's conntrack table, which has %s buckets here and next to no entries, takes %s for one family (median of %d).\n",
			grouped(r.conntrack.buckets), millis(median(r.conntrack.reads)), len(r.conntrack.reads))
}

// goals compares with what the project has promised itself.
func (r *report) goals() string {
	t := table{head: []string{"goal", "measured", ""}}
	for _, row := range r.rows {
		ours, floor := r.subjects[nftables], r.subjects[floorPlugin]
		s := row.samples[ours]
		switch row.ports {
		case 1:
			all := ratios(s, row.samples[r.subjects[builtin]], startOf)
			ratio := median(all)
			t.add("one port: start at most 1.05 of the built-in bridge's", fmt.Sprintf("%.2f", ratio), verdict(ratio <= 1.05))
		case 1000:
			more := over(s, row.samples[floor], startOf)
			t.add("1,000 ports: start at most 0.3 s over the floor", millis(more), verdict(more <= 300*time.Millisecond))
			peak := s[len(s)-1].removed.peak
			t.add("1,000 ports: daemon at most 40 MiB resident, at its peak", mib(peak)+" MiB", verdict(peak <= 40<<20))
		}
	}
	r.trafficGoals(&t)
	r.shimGoals(&t)
	return section("Goals", t)
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

func section(title string, t table) string {
	return fmt.Sprintf("\n### %s\n\n%s", title, t)
}

// table is a Markdown table.
type table struct {
	head []string
	rows [][]string
}

// add adds a line; cells that are missing at its end are empty.
func (t *table) add(cells ...string) {
	t.rows = append(t.rows, append(cells, make([]string, len(t.head)-len(cells))...))
}

// String implements fmt.Stringer.
func (t table) String() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(t.head)
	fmt.Fprintf(&b, "|%s\n", strings.Repeat("---|", len(t.head)))
	for _, cells := range t.rows {
		line(cells)
	}
	return b.String()
}

func plural(ports int) string {
	if ports == 1 {
		return "1 port"
	}
	return grouped(ports) + " ports"
}

// grouped writes 10000 as 10,000.
func grouped(n int) string {
	if n < 0 {
		return "-" + grouped(-n)
	}
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
