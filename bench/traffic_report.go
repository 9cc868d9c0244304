package main

import (
	"fmt"
	"os"
	"regexp"
	"time"

	"github.com/portolan/portolan/bench/load"
)

// The paths that goals are about.
const (
	atLocalhost   = "Portolan, 127.0.0.1"
	atHostIPv4    = "Portolan, the host's IPv4 address"
	atLocalhost6  = "Portolan, [::1]"
	atHostIPv6    = "Portolan, the host's IPv6 address"
	atLocalhost64 = "Portolan, [::1] of an IPv4-only container"
)

// tables have a line for each path.
func (f *trafficFigures) tables() string {
	head := []string{"path"}
	for _, what := range loads {
		head = append(head, what.name)
	}
	rates, cpu := table{head: head}, table{head: head}
	for _, p := range f.paths {
		cells, burnt := []string{p.name}, []string{p.name}
		if p.failed != "" {
			cells[0] += " (failed: " + p.failed + ")"
		}
		for i := range loads {
			cells, burnt = append(cells, f.rateCell(p, i)), append(burnt, costCell(p, i))
		}
		rates.add(cells...)
		cpu.add(burnt...)
	}
	return section("Traffic from the host, answers a second (bulk: Gbit/s), and what part that is of the straight path", rates) +
		"\n" + f.hooks + "\n" +
		section("Processor time for each answer (bulk: for each Gbit): of the proxy's processes / of the whole machine, client and server included", cpu)
}

// hooksLine is what a daemon logs at its start.
var hooksLine = regexp.MustCompile(`"hooks":"([^"]*)","why-hooks":"([^"]*)"`)

// hooksOf is a sentence about the BPF hooks, from the daemon's log.
func hooksOf(d *daemon) string {
	text, err := os.ReadFile(d.log)
	if m := hooksLine.FindStringSubmatch(string(text)); err == nil && m != nil {
		return fmt.Sprintf("Portolan's BPF hooks were %s (%s).", m[1], m[2])
	}
	return "Portolan's daemon did not say whether it has BPF hooks."
}

func (f *trafficFigures) rateCell(p *path, i int) string {
	if len(p.rates[i]) == 0 {
		return "–"
	}
	rate, form := median(p.rates[i]), "%.0f (%.2f)"
	if loads[i].spec.Kind == load.Bulk {
		form = "%.1f (%.2f)"
	}
	text := fmt.Sprintf(form, rate, rate/median(f.paths[p.direct].rates[i]))
	if p.lost[i] > 0 {
		text += fmt.Sprintf(", %s lost", grouped(int(p.lost[i])))
	}
	return text
}

func costCell(p *path, i int) string {
	if len(p.costs[i]) == 0 {
		return "–"
	}
	own, machine := medianCost(p, i)
	unit, form := time.Microsecond, "%.1f µs"
	if loads[i].spec.Kind == load.Bulk {
		unit, form = time.Millisecond, "%.0f ms"
	}
	text := fmt.Sprintf(form, float64(machine)/float64(unit))
	if len(p.pids) == 0 {
		return "– / " + text
	}
	return fmt.Sprintf("%.1f / ", float64(own)/float64(unit)) + text
}

func medianCost(p *path, i int) (own, machine time.Duration) {
	var owns, machines []time.Duration
	for _, c := range p.costs[i] {
		owns, machines = append(owns, c.own), append(machines, c.machine)
	}
	return median(owns), median(machines)
}

func (f *trafficFigures) path(name string) *path {
	for _, p := range f.paths {
		if p.name == name && p.failed == "" {
			return p
		}
	}
	return nil
}

// ratioTo is a path's rate by another's, the median of rounds, or 0.
func (f *trafficFigures) ratioTo(name, other string, i int) float64 {
	a, b := f.path(name), f.path(other)
	if a == nil || b == nil || len(a.rates[i]) == 0 || len(b.rates[i]) == 0 {
		return 0
	}
	var all []float64
	for round := range min(len(a.rates[i]), len(b.rates[i])) {
		all = append(all, a.rates[i][round]/b.rates[i][round])
	}
	return median(all)
}

// aim is a part of another path's rate, by the load's name.
type aim struct {
	path, other string
	least       map[string]float64
}

// aims are the goals about rates. docker-proxy of engine 20.10 is faster than
// that of 29.
func (f *trafficFigures) aims() []aim {
	four, six, fourBySix := f.paths[direct4].name, f.paths[direct6].name, f.paths[direct4by6].name
	every := func(part float64) map[string]float64 {
		least := map[string]float64{}
		for _, what := range loads {
			least[what.name] = part
		}
		return least
	}
	hooked := every(0.95)
	hooked["UDP, unconnected"] = 0.9
	older := map[string]float64{"UDP, 32 clients": 1.3, "UDP, 16 × 16": 1.5, "UDP, 256 × 4": 1.3}
	newer := map[string]float64{"UDP, 32 clients": 1.9, "UDP, 16 × 16": 2.2, "UDP, 256 × 4": 1.9}
	for _, proxy := range []map[string]float64{older, newer} {
		proxy["TCP, 32 clients"], proxy["TCP connections"], proxy["TCP bulk"] = 1.3, 1.4, 1.05
	}
	proxy := older
	if f.major >= 29 {
		proxy = newer
	}
	aims := []aim{
		{atLocalhost, four, every(0.9)},
		{atHostIPv4, four, every(0.9)},
		{atLocalhost6, six, hooked},
		{atHostIPv6, six, hooked},
		{atLocalhost64, fourBySix, hooked},
		{ourProxy, "docker-proxy", proxy},
		{ourProxy, "nginx stream", map[string]float64{"UDP, 32 clients": 1.3, "UDP, 16 × 16": 1.3, "UDP, 256 × 4": 1.3}},
	}
	if f.path(newerProxy) != nil {
		aims = append(aims, aim{ourProxy, newerProxy, newer})
	}
	return aims
}

func (f *trafficFigures) goals() (goals []goal) {
	for _, a := range f.aims() {
		for i, what := range loads {
			least, found := a.least[what.name]
			if p := f.path(a.path); !found || p != nil && !p.carries(what.spec) {
				continue
			}
			ratio := f.ratioTo(a.path, a.other, i)
			g := atLeast(fmt.Sprintf("%s, %s: at least %.2f of %s", a.path, what.name, least, a.other), ratio, least)
			if ratio == 0 {
				g.measured = "not measured"
			}
			goals = append(goals, g)
		}
	}
	ours, theirs := f.path(ourProxy), f.path("docker-proxy")
	for i, what := range loads {
		if what.spec.Kind != load.UDP || ours == nil || len(ours.rates[i]) == 0 {
			continue
		}
		goals = append(goals, goal{ourProxy + ", " + what.name + ": nothing lost", grouped(int(ours.lost[i])), ours.lost[i] == 0})
		if theirs == nil || len(theirs.costs[i]) == 0 {
			continue
		}
		own, _ := medianCost(ours, i)
		other, _ := medianCost(theirs, i)
		part := float64(own) / float64(max(other, 1))
		goals = append(goals, atMost(ourProxy+", "+what.name+": at most 0.6 of docker-proxy's processor time for each answer", part, 0.6))
	}
	return goals
}

// charts are rates by path, as parts of the straight one.
func (f *trafficFigures) charts() []chart {
	c := chart{File: "rates", Title: "Rate by path, as a part of straight to the container", X: "1 = straight to the container"}
	for _, p := range f.paths[direct4by6+1:] {
		c.Names = append(c.Names, p.name)
	}
	for i, what := range loads {
		if what.spec.Unconnected || what.spec.Window > 1 && what.spec.Clients > 16 {
			continue // there is no room for all
		}
		one := panel{Title: what.name}
		for _, p := range f.paths[direct4by6+1:] {
			value := -1.0
			if len(p.rates[i]) > 0 {
				value = median(p.rates[i]) / median(f.paths[p.direct].rates[i])
			}
			one.Values = append(one.Values, value)
		}
		c.Panels = append(c.Panels, one)
	}
	return []chart{c}
}
