package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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

func TestGoals(t *testing.T) {
	met := example(300*time.Millisecond, 1.05, 40<<20).goals()
	assert.Equal(t, 3, strings.Count(met, "| met |"), met)
	missed := example(301*time.Millisecond, 1.06, 40<<20+1).goals()
	assert.Equal(t, 3, strings.Count(missed, "| missed |"), missed)
}

// Every line of a table has as many cells as its head, or it is no table.
func TestTablesAreWellFormed(t *testing.T) {
	r := example(time.Second, 2, 1<<20)
	r.micro = []microbenchmark{{"proxy X", "1 ns/op"}}
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
}

func TestReplaceBetween(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.md")
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o644)) }
	write("before\n" + markerBegin + "old\n" + markerEnd + "after\n")
	got, err := replaceBetween(path, "new\n")
	require.NoError(t, err)
	assert.Equal(t, "before\n"+markerBegin+"new\n"+markerEnd+"after\n", string(got))

	write("before\n" + markerEnd + markerBegin)
	_, err = replaceBetween(path, "new\n")
	assert.ErrorContains(t, err, "bench: end")
	write("before\n")
	_, err = replaceBetween(path, "new\n")
	assert.ErrorContains(t, err, "bench: begin")
}

// The page that the figures go into is ready for them.
func TestBenchmarksPage(t *testing.T) {
	_, err := replaceBetween("../docs/benchmarks.md", "")
	assert.NoError(t, err)
}
