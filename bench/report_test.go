package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/bench/load"
)

// samples have these start times, in milliseconds, and a daemon of that peak.
func samples(peak int64, starts ...int) []sample {
	var out []sample
	for _, ms := range starts {
		d := time.Duration(ms) * time.Millisecond
		out = append(out, sample{start: d, remove: d / 2, removed: memory{peak: peak}})
	}
	return out
}

// example starts in so much over the floor, and one port in so much of what the
// built-in bridge takes.
func example(over time.Duration, ratio float64, peak int64) *portFigures {
	subs := make([]*subject, places)
	for place := range subs {
		subs[place] = newSubject(place)
	}
	subs[nftables].daemon, subs[iptables].daemon = &daemon{}, &daemon{}
	one := samples(peak, 100, 100, int(100*ratio), int(100*ratio), int(100*ratio))
	base := samples(0, 100, 100, 100, 100, 100)
	some := 200 + int(over.Milliseconds())
	rows := []row{
		{set: noPorts, samples: map[*subject][]sample{subs[nftables]: one, subs[floorPlugin]: base, subs[builtin]: base}},
		{set: udpPorts(1), samples: map[*subject][]sample{subs[nftables]: one, subs[floorPlugin]: base, subs[builtin]: base, subs[docker0]: base}},
	}
	for _, set := range []portSet{udpPorts(1000), udpPorts(10000), coturnPorts, allPorts} {
		rows = append(rows, row{set: set, samples: map[*subject][]sample{subs[nftables]: samples(peak, some), subs[floorPlugin]: samples(0, 200)}})
	}
	return &portFigures{subjects: subs, rows: rows}
}

// exampleShim lists in so much more, 19 of 1,000 times in slow more, and saves
// in so many milliseconds where the engine takes 90.
func exampleShim(more, slow time.Duration, save int, peak int64) *shimFigures {
	straight, shim := &way{saves: []time.Duration{90 * time.Millisecond}}, &way{saves: []time.Duration{time.Duration(save) * time.Millisecond}}
	for i := range 1000 {
		straight.lists = append(straight.lists, time.Millisecond)
		took := time.Millisecond + more
		if i < 19 {
			took = time.Millisecond + slow
		}
		shim.lists = append(shim.lists, took)
	}
	return &shimFigures{straight: straight, shim: shim, last: memory{rss: peak, peak: peak}}
}

func count(goals []goal) (met, missed int) {
	for _, g := range goals {
		if g.met {
			met++
		} else {
			missed++
		}
	}
	return met, missed
}

func TestGoals(t *testing.T) {
	// 0.3 s over the floor's 0.2 s is 2.5 of it: too much for all ports, to start
	// and to remove.
	goals := example(300*time.Millisecond, 1.05, 40<<20).goals()
	met, missed := count(goals)
	assert.Equal(t, []int{10, 2}, []int{met, missed}, "%v", goals)
	goals = example(50*time.Millisecond, 1.05, 40<<20).goals()
	met, missed = count(goals)
	assert.Equal(t, []int{12, 0}, []int{met, missed}, "%v", goals)
	goals = example(501*time.Millisecond, 1.06, 64<<20+1).goals()
	met, missed = count(goals)
	assert.Equal(t, []int{0, 12}, []int{met, missed}, "%v", goals)

	met, _ = count(exampleShim(2*time.Millisecond, 5*time.Millisecond, 100, 30<<20-1).goals())
	assert.Equal(t, 4, met)
	_, missed = count(exampleShim(2*time.Millisecond+1, 5*time.Millisecond+1, 101, 30<<20).goals())
	assert.Equal(t, 4, missed)
}

// What failed is no goal that was met, and a line that says why.
func TestFailedRow(t *testing.T) {
	f := example(0, 1, 1<<20)
	last := &f.rows[len(f.rows)-1]
	ours := f.subjects[nftables]
	last.samples[ours], last.failed = nil, map[*subject]string{ours: "too many open files"}
	_, missed := count(f.goals())
	assert.Equal(t, 3, missed, "%v", f.goals())
	text := f.tables()
	assert.Contains(t, text, "| 65,535 × 2 (all) | Portolan, nftables | failed: too many open files |")
	assert.Contains(t, text, "| 65,535 × 2 (all) | built-in bridge | not run |")
	for _, c := range f.charts() {
		for _, l := range c.Lines {
			assert.NotEmpty(t, l.Points, l.Name)
		}
	}
}

func TestPercentile(t *testing.T) {
	values := []time.Duration{5, 1, 4, 2, 3}
	for of, want := range map[int]time.Duration{100: 5, 99: 5, 80: 4, 60: 3, 50: 3, 20: 1, 1: 1} {
		assert.Equal(t, want, percentile(values, of), of)
	}
	assert.Zero(t, percentile(nil, 99))
}

// Every line of a table has as many cells as its head, or it is no table.
func TestTablesAreWellFormed(t *testing.T) {
	for _, f := range []figures{
		example(time.Second, 2, 1<<20),
		exampleShim(time.Millisecond, time.Millisecond, 100, 1<<20),
		&packageFigures{micro: []microbenchmark{{"proxy X", "1 ns/op"}}},
		examplePaths(),
		exampleSustained(),
		exampleCrowds(),
		exampleResidents(),
	} {
		wellFormed(t, goalsTable(f.goals())+f.tables())
	}
}

func wellFormed(t *testing.T, text string) {
	columns := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") {
			columns = 0
			continue
		}
		n := strings.Count(line, "|")
		if columns == 0 {
			columns = n
		}
		assert.Equal(t, columns, n, line)
	}
}

func TestPortTables(t *testing.T) {
	text := example(time.Second, 2, 1<<20).tables()
	assert.Contains(t, text, "| 1,000 | built-in bridge | not run |")
	assert.NotContains(t, text, "| 1,000 | built-in, default")
	assert.Contains(t, text, "| 1,000 | Portolan, nftables | 1.20 s | 1.00 s | 600 ms | 500 ms |")
	assert.Contains(t, text, "| 1 (once only) |")
	assert.Contains(t, text, "| none | built-in bridge | 100 ms |")
}

func TestTrafficTables(t *testing.T) {
	f := examplePaths()
	text := f.tables()
	assert.Contains(t, text, "| Portolan, 127.0.0.1 | 90 (0.90) |")
	assert.Contains(t, text, "| HAProxy | – | – | – | – | 50 (0.50), 7 lost | 50 (0.50) | 50.0 (0.50) |")
	assert.Contains(t, text, "| HAProxy | – | – | – | – | 5.0 / 9.0 µs | 5.0 / 9.0 µs | 0.0 / 0 ms |")
	assert.Contains(t, text, "| socat (failed: not here) | – |")
	goals := goalsTable(f.goals())
	assert.Contains(t, goals, "| Portolan, 127.0.0.1, UDP, 32 clients: at least 0.90 of straight 4 | 0.90 | met |")
	assert.Contains(t, goals, "| Portolan, [::1], TCP bulk: at least 0.95 of straight 6 | not measured | missed |")
	assert.Contains(t, goals, "| portolan-proxy, UDP, 16 × 16: at least 1.50 of docker-proxy | 1.60 | met |")
	assert.Contains(t, goals, "| portolan-proxy, TCP bulk: at least 1.05 of docker-proxy | 1.60 | met |")
	assert.Contains(t, goals, "| portolan-proxy, UDP, 32 clients: at most 0.6 of docker-proxy's processor time for each answer | 0.50 | met |")
	assert.Contains(t, goals, "| portolan-proxy, UDP, 32 clients: nothing lost | 0 | met |")
	assert.NotContains(t, goals, "portolan-proxy, UDP, unconnected: at least")
	f.major = 29
	assert.Contains(t, goalsTable(f.goals()), "| portolan-proxy, UDP, 16 × 16: at least 2.20 of docker-proxy | 1.60 | missed |")

	c := f.charts()[0]
	assert.Equal(t, "Portolan, 127.0.0.1", c.Names[0])
	assert.Equal(t, []float64{0.9, 0.5, 0.8, -1, -1}, c.Panels[0].Values)
	assert.Equal(t, []float64{0.9, 0.5, 0.8, 0.5, -1}, c.Panels[2].Values)

	newer := newPath(path{name: newerProxy})
	newer.rates[1] = []float64{40}
	f.paths = append(f.paths, newer)
	assert.Contains(t, goalsTable(f.goals()), "| portolan-proxy, UDP, 16 × 16: at least 2.20 of docker-proxy of engine 29 | 2.00 | missed |")
}

// A verdict and the figure beside it do not contradict one another.
func TestVerdict(t *testing.T) {
	assert.Equal(t, goal{"x", "1.29", false}, atLeast("x", 1.2999, 1.3))
	assert.Equal(t, goal{"x", "1.30", true}, atLeast("x", 1.3, 1.3))
	assert.Equal(t, goal{"x", "1.06", false}, atMost("x", 1.0501, 1.05))
	assert.Equal(t, goal{"x", "1.05", true}, atMost("x", 1.05, 1.05))
}

func TestMajorOf(t *testing.T) {
	assert.Equal(t, 20, majorOf("Docker version 20.10.24+dfsg1, build 297e128"))
	assert.Equal(t, 29, majorOf("Docker version 29.0.1, build x"))
	assert.Zero(t, majorOf("unknown"))
}

func exampleSustained() *sustainedFigures {
	return &sustainedFigures{window: 5 * time.Second, runs: []endurance{
		{peer: ourProxy, rates: []float64{1000, 1100, 900}, cost: cost{own: 40 * time.Microsecond, machine: 90 * time.Microsecond}},
		{peer: ourProxy, orderly: true, rates: []float64{1000, 500, 899}, lost: 3},
		{peer: "docker-proxy", failed: "not here"},
	}}
}

func TestSustained(t *testing.T) {
	f := exampleSustained()
	text := f.tables()
	assert.Contains(t, text, "| portolan-proxy | reset | 1,000 | 900 | 900 | 0.90 | 1,000 | 0 | 40.0 µs | 90.0 µs |")
	assert.Contains(t, text, "| portolan-proxy | close | 1,000 | 500 | 899 | 0.90 | 800 | 3 |")
	assert.Contains(t, text, "| docker-proxy | reset | failed: not here |")
	goals := f.goals()
	require.Len(t, goals, 2)
	assert.True(t, goals[0].met)
	assert.False(t, goals[1].met, "0.899 is not 0.9")
	assert.Len(t, f.charts()[0].Lines, 2)
	assert.Zero(t, endurance{}.held())
}

func exampleCrowds() *networkFigures {
	return &networkFigures{crowds: []*crowd{
		crowdOf1:     {name: "Portolan, nftables", place: nftables, ports: 1, rates: []float64{100, 200, 100}},
		crowdOf10000: {name: "Portolan, nftables", place: nftables, ports: 10000, rates: []float64{95, 100, 96}},
		crowdOfAll:   {name: "Portolan, nftables", place: nftables, ports: 65535, failed: "failed: too many open files"},
		{name: "built-in bridge, no proxy", place: noProxy, ports: 1, rates: []float64{100}},
		{name: "built-in bridge, no proxy", place: noProxy, ports: 1000, rates: []float64{50}},
	}}
}

func TestNetwork(t *testing.T) {
	f := exampleCrowds()
	text := f.tables()
	assert.Contains(t, text, "| Portolan, nftables | 65,535 | failed: too many open files |")
	assert.Contains(t, text, "| built-in bridge, no proxy | 1,000 | 50 | 50 – 50 | 0.50 |")
	goals := f.goals()
	require.Len(t, goals, 2)
	assert.Equal(t, goal{"from the network, 10,000 TCP ports: at least 0.95 of the connections with one", "0.95", true}, goals[0])
	assert.Equal(t, "failed", goals[1].measured)
	assert.False(t, goals[1].met)
	assert.Len(t, f.charts()[0].Lines, 2)
}

func exampleResidents() *establishedFigures {
	f := &establishedFigures{}
	for _, ms := range []int{4, 5, 6, 9} {
		took := []time.Duration{time.Duration(ms) * time.Millisecond}
		all := map[string][]time.Duration{"tcp": took, "udp": took}
		f.residents = append(f.residents, &resident{name: "a", publish: all, revoke: all})
	}
	return f
}

func TestEstablished(t *testing.T) {
	f := exampleResidents()
	met, missed := count(f.goals())
	assert.Equal(t, []int{4, 0}, []int{met, missed})
	f.residents[fullInMemory].publish["tcp"] = []time.Duration{5*time.Millisecond + 1}
	met, missed = count(f.goals())
	assert.Equal(t, []int{2, 2}, []int{met, missed}, "the other states do not count")
	assert.Contains(t, f.tables(), "| a | on disk, fsync | 9.0 ms | 9.0 ms – 9.0 ms | 9.0 ms | 9.0 ms |")
	assert.Len(t, objectID("e", 499), 64)
	assert.NotEqual(t, objectID("e", 7)[:10], objectID("e", 8)[:10], "interfaces have names of ten digits")
}

// examplePaths are 100, 90, 50 and 80 answers a second of everything.
func examplePaths() *trafficFigures {
	f := &trafficFigures{major: 20}
	for _, p := range []struct {
		name string
		rate float64
		own  time.Duration
	}{{"straight 4", 100, 0}, {"straight 6", 100, 0}, {"straight 4 by 6", 100, 0}, {atLocalhost, 90, 0}, {"docker-proxy", 50, 10}, {ourProxy, 80, 5}, {"HAProxy", 50, 5}} {
		one := newPath(path{name: p.name, unconnected: p.name == atLocalhost || p.rate == 100})
		if p.own > 0 {
			one.pids = []int{1}
		}
		for i, what := range loads {
			if !one.carries(what.spec) || p.name == "HAProxy" && what.spec.Kind == load.UDP {
				continue
			}
			one.rates[i] = []float64{p.rate, p.rate, p.rate}
			one.costs[i] = []cost{{own: p.own * time.Microsecond, machine: 9 * time.Microsecond}}
		}
		f.paths = append(f.paths, one)
	}
	f.paths[6].lost[4] = 7
	f.paths = append(f.paths, newPath(path{name: "socat", failed: "not here"}))
	return f
}

// The processor time of a process includes that of children that have ended.
func TestCPUOf(t *testing.T) {
	before, err := cpuOf([]int{os.Getpid()})
	require.NoError(t, err)
	require.NoError(t, exec.Command("sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done").Run())
	after, err := cpuOf([]int{os.Getpid()})
	require.NoError(t, err)
	assert.Greater(t, after, before)
	_, err = cpuOf([]int{1 << 30})
	assert.Error(t, err)
}

func TestReplaceBetween(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.md")
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o644)) }
	markerBegin, markerEnd := markers("x")
	write("before\n" + markerBegin + "old\n" + markerEnd + "after\n")
	got, err := replaceBetween(path, "x", "new\n")
	require.NoError(t, err)
	assert.Equal(t, "before\n"+markerBegin+"new\n"+markerEnd+"after\n", string(got))

	write("before\n" + markerEnd + markerBegin)
	_, err = replaceBetween(path, "x", "new\n")
	assert.ErrorContains(t, err, "bench x: end")
	write("before\n")
	_, err = replaceBetween(path, "x", "new\n")
	assert.ErrorContains(t, err, "bench x: begin")
}

// The page that the figures go into is ready for them.
func TestBenchmarksPage(t *testing.T) {
	page, err := os.ReadFile("../docs/benchmarks.md")
	require.NoError(t, err)
	for _, name := range partNames() {
		_, err := replaceBetween("../docs/benchmarks.md", name, "")
		assert.NoError(t, err)
	}
	for _, f := range []figures{example(0, 1, 1), examplePaths(), exampleSustained(), exampleCrowds()} {
		for _, c := range f.charts() {
			assert.True(t, strings.Contains(string(page), "]("+chartDir+"/"+c.File+".svg)"), c.File)
		}
	}
}

// What this program says of a chart is what the other one draws.
func TestDraw(t *testing.T) {
	program := filepath.Join(t.TempDir(), "plot")
	build := exec.Command("go", "build", "-C", "plot", "-o", program, ".")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	dir := filepath.Join(t.TempDir(), "charts")
	for _, f := range []figures{example(0, 1, 1), examplePaths(), exampleSustained(), exampleCrowds()} {
		for _, c := range f.charts() {
			require.NoError(t, c.draw(t.Context(), program, dir))
			svg, err := os.ReadFile(filepath.Join(dir, c.File+".svg"))
			require.NoError(t, err)
			words := []string{c.Title, c.X}
			for _, l := range c.Lines {
				words = append(words, l.Name)
			}
			for _, w := range append(words, c.Names...) {
				assert.True(t, strings.Contains(string(svg), ">"+w+"</text>"), "%s has no text %q", c.File, w)
			}
		}
	}
	assert.ErrorContains(t, chart{File: "empty"}.draw(t.Context(), program, dir), "no lines")
}
