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

func example(over time.Duration, ratio float64, peak int64) *report {
	subs := []*subject{
		nftables:    {name: "Portolan, nftables", daemon: &daemon{}},
		iptables:    {name: "Portolan, iptables", daemon: &daemon{}},
		floorPlugin: {name: "floor", floor: true},
		builtin:     {name: "built-in bridge", proxies: true},
		docker0:     {name: "default", proxies: true},
	}
	one := samples(peak, 100, 100, int(100*ratio), int(100*ratio), int(100*ratio))
	base := samples(0, 100, 100, 100, 100, 100)
	thousand := 200 + int(over.Milliseconds())
	return &report{subjects: subs, rows: []row{
		{ports: 1, samples: map[*subject][]sample{subs[nftables]: one, subs[floorPlugin]: base, subs[builtin]: base, subs[docker0]: base}},
		{ports: 1000, samples: map[*subject][]sample{subs[nftables]: samples(peak, thousand), subs[floorPlugin]: samples(0, 200)}},
	}}
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

func TestGoals(t *testing.T) {
	r := example(300*time.Millisecond, 1.05, 40<<20)
	r.shim = exampleShim(2*time.Millisecond, 5*time.Millisecond, 100, 30<<20-1)
	met := r.goals()
	assert.Equal(t, 7, strings.Count(met, "| met |"), met)
	r = example(301*time.Millisecond, 1.06, 40<<20+1)
	r.shim = exampleShim(2*time.Millisecond+1, 5*time.Millisecond+1, 101, 30<<20)
	missed := r.goals()
	assert.Equal(t, 7, strings.Count(missed, "| missed |"), missed)
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
	r := example(time.Second, 2, 1<<20)
	r.shim = exampleShim(time.Millisecond, time.Millisecond, 100, 1<<20)
	r.micro = []microbenchmark{{"proxy X", "1 ns/op"}}
	r.paths = examplePaths()
	text := r.markdown()
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
	assert.Contains(t, text, "| 1,000 | built-in bridge | not run |")
	assert.NotContains(t, text, "| 1,000 | default")
	assert.Contains(t, text, "| 1,000 | Portolan, nftables | 1.20 s | 1.00 s | 600 ms |")
	assert.Contains(t, text, "| Portolan, 127.0.0.1 | 90 (0.90) |")
	assert.Contains(t, text, "| HAProxy | – | – | – | 50 (0.50), 7 lost | 50 (0.50) | 50.0 (0.50) |")
	assert.Contains(t, text, "| HAProxy |  |  |  | 5.0 µs | 5.0 µs |")

	// One section alone is no reason to fail.
	text = (&report{paths: examplePaths()}).markdown()
	assert.NotContains(t, text, "docker run")
	assert.Contains(t, text, "| 127.0.0.1, UDP, 32 clients: at least 0.9 of straight | 0.90 | met |")
}

// examplePaths are 100, 90 and 50 answers a second of everything.
func examplePaths() (paths []*path) {
	for _, p := range []struct {
		name string
		rate float64
	}{{"straight 4", 100}, {"straight 6", 100}, {"Portolan, 127.0.0.1", 90}, {"HAProxy", 50}} {
		one := &path{name: p.name, rates: make([][]float64, len(loads)), lost: make([]int64, len(loads)), cpu: make([][]time.Duration, len(loads))}
		for i := range loads {
			one.rates[i] = []float64{p.rate, p.rate, p.rate}
		}
		paths = append(paths, one)
	}
	haproxy := paths[3]
	haproxy.pids = []int{1}
	for i, what := range loads {
		if what.spec.Kind == load.UDP {
			haproxy.rates[i] = nil
			continue
		}
		haproxy.cpu[i] = []time.Duration{5 * time.Microsecond}
	}
	haproxy.lost[3] = 7
	return paths
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
	markerBegin, markerEnd := markers("")
	write("before\n" + markerBegin + "old\n" + markerEnd + "after\n")
	got, err := replaceBetween(path, "", "new\n")
	require.NoError(t, err)
	assert.Equal(t, "before\n"+markerBegin+"new\n"+markerEnd+"after\n", string(got))

	write("before\n" + markerEnd + markerBegin)
	_, err = replaceBetween(path, "", "new\n")
	assert.ErrorContains(t, err, "bench: end")
	write("before\n")
	_, err = replaceBetween(path, "", "new\n")
	assert.ErrorContains(t, err, "bench: begin")
}

// The page that the figures go into is ready for them.
func TestBenchmarksPage(t *testing.T) {
	for _, only := range []string{"", "shim"} {
		_, err := replaceBetween("../docs/benchmarks.md", only, "")
		assert.NoError(t, err)
	}
}
