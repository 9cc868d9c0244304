package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-connections/nat"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMedian(t *testing.T) {
	assert.Equal(t, 0, median([]int{}))
	assert.Equal(t, 3, median([]int{9, 1, 3}))
	assert.Equal(t, 2.5, median([]float64{4, 1, 2, 3}))
	low, high := spread([]int{5, 1, 2, 3, 4})
	assert.Equal(t, []int{2, 4}, []int{low, high})
}

// A ratio is of two samples of one round; what was measured less often ends
// the comparison.
func TestRatios(t *testing.T) {
	a, b := samples(0, 100, 300, 500), samples(0, 200, 100)
	assert.Equal(t, []float64{0.5, 3}, ratios(a, b, startOf))
	assert.Equal(t, 50*time.Millisecond, over(a, b, startOf), "the median of -100 and 200")
}

func TestFigures(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"1.5 ms":  1500 * time.Microsecond,
		"-7.1 ms": -7100 * time.Microsecond,
		"-24 ms":  -24 * time.Millisecond,
		"346 ms":  346700 * time.Microsecond,
		"2.12 s":  2123 * time.Millisecond,
		"72.4 s":  72420 * time.Millisecond,
	} {
		assert.Equal(t, want, millis(d))
	}
	assert.Equal(t, "1,234,567", grouped(1234567))
	assert.Equal(t, "12", grouped(12))
	assert.Equal(t, "-1,999", grouped(-1999))
	assert.Equal(t, "-199", grouped(-199))
}

func TestPortSets(t *testing.T) {
	assert.Equal(t, []string{"-p", "10000:10000/udp"}, udpPorts(1).arguments())
	assert.Equal(t, []string{"-p", "10000-10999:10000-10999/udp"}, udpPorts(1000).arguments())
	assert.Equal(t, 10999, udpPorts(1000).last)
	assert.Empty(t, noPorts.arguments())
}

// What is said of a set of ports is what docker run is told.
func TestPortSetsCount(t *testing.T) {
	for _, set := range []portSet{noPorts, udpPorts(1), udpPorts(100), coturnPorts, allPorts} {
		assert.Equal(t, set.count, portsIn(t, set.specs), set.name)
	}
	for _, n := range []int{0, 1, 999, 9999, 60000, 65533} {
		specs := otherPorts(n, networkPort)
		assert.Equal(t, n, portsIn(t, specs), specs)
		for _, spec := range specs {
			var from, to int
			_, err := fmt.Sscanf(spec, "%d-%d:", &from, &to)
			require.NoError(t, err)
			assert.False(t, from <= networkPort+1 && networkPort <= to, "%s has the port that is asked", spec)
		}
	}
}

func portsIn(t *testing.T, specs []string) (n int) {
	for _, spec := range specs {
		mappings, err := nat.ParsePortSpec(spec)
		require.NoError(t, err)
		n += len(mappings)
	}
	return n
}

func TestPlan(t *testing.T) {
	thousand := func(quick bool, free int64) [2]int {
		for _, p := range plan(quick, free) {
			assert.Equal(t, p.times[nftables], p.times[floorPlugin], "pairs are of one round")
			if p.set.count <= 1 {
				assert.Equal(t, pairs, p.times[nftables])
				assert.Equal(t, pairs, p.times[builtin], "pairs are of one round")
			}
			if p.set.count == 1000 {
				return [2]int{p.times[builtin], p.times[noProxy]}
			}
		}
		return [2]int{-1, -1}
	}
	assert.Equal(t, [2]int{1, 1}, thousand(false, 64<<30))
	assert.Equal(t, [2]int{0, 0}, thousand(true, 64<<30))
	assert.Equal(t, [2]int{0, 1}, thousand(false, 1<<30), "2,000 processes do not fit")
}

func TestReadCallTimes(t *testing.T) {
	times, err := readCallTimes(strings.NewReader(`{"level":"INFO","msg":"portolan daemon"}
{"level":"DEBUG","msg":"call","call":"/NetworkDriver.Join","took":3300000}
fatal error: not JSON
{"level":"DEBUG","msg":"call","call":"/NetworkDriver.Join","took":4300000}
`))
	require.NoError(t, err)
	assert.Equal(t, map[string][]time.Duration{"Join": {3300 * time.Microsecond, 4300 * time.Microsecond}}, times)
}

func TestParseMicro(t *testing.T) {
	got := parseMicro([]byte("goos: linux\npkg: github.com/portolan/portolan/proxy\n" +
		"BenchmarkUDPRoundTrip/by_::1_to_::1-2         \t    5782\t     75284 ns/op\t     300 B/op\nPASS\n"))
	assert.Equal(t, []microbenchmark{{"proxy UDPRoundTrip/by_::1_to_::1", "75284 ns/op, 300 B/op"}}, got)
}

func TestStatusOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "status")
	require.NoError(t, os.WriteFile(path, []byte("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 12 kB\n"), 0o644))
	n, err := statusOf(path, "VmRSS")
	require.NoError(t, err)
	assert.EqualValues(t, 12*kib, n)
	_, err = statusOf(path, "VmSwap")
	assert.ErrorContains(t, err, "VmSwap")
	m, err := memoryOf(os.Getpid())
	require.NoError(t, err)
	assert.Positive(t, m.rss)
	assert.GreaterOrEqual(t, m.peak, m.rss)
}

func TestReadIDs(t *testing.T) {
	n, e, err := readIDs(strings.NewReader(`{"NetworkID":"n1","EndpointID":"e1","Options":{"and so on, cut short`))
	require.NoError(t, err)
	assert.Equal(t, []string{"n1", "e1"}, []string{n, e})
	n, _, err = readIDs(strings.NewReader(`{"NetworkID":"n1"}`))
	require.NoError(t, err)
	assert.Equal(t, "n1", n)
	_, _, err = readIDs(strings.NewReader(""))
	assert.Error(t, err)
}

func TestSession(t *testing.T) {
	var order []string
	clean := func(s *session) {
		s.Cleanup(func() { order = append(order, "first") })
		s.Cleanup(func() { order = append(order, "second") })
	}
	s := &session{}
	require.NoError(t, s.run(t.Context(), func() error { clean(s); return nil }))
	assert.Equal(t, []string{"second", "first"}, order)

	order, s = nil, &session{}
	err := s.run(t.Context(), func() error { clean(s); s.FailNow(); return nil })
	require.ErrorIs(t, err, errFailed)
	assert.Len(t, order, 2, "FailNow ends f, not the cleanups")

	cause := errors.New("no engine")
	s = &session{}
	err = s.run(t.Context(), func() error { return cause })
	require.ErrorIs(t, err, cause)
	assert.True(t, s.Failed())

	ctx, cancel := context.WithCancel(t.Context())
	s = &session{}
	err = s.run(ctx, func() error { cancel(); return cause })
	require.ErrorIs(t, err, context.Canceled, "what fails after Ctrl-C is no news")
}

// A part that fails says so and writes nothing.
func TestRunPart(t *testing.T) {
	good := part{"good", func(_ context.Context, s *session, _ config) (figures, error) {
		s.Cleanup(func() { s.Logf("cleaned up") })
		return &packageFigures{micro: []microbenchmark{{"x", "1 ns/op"}}}, nil
	}}
	text, charts, err := good.run(t.Context(), config{})
	require.NoError(t, err)
	assert.Empty(t, charts)
	assert.Contains(t, text, "| `x` | 1 ns/op |")
	assert.Regexp(t, `^Machine: \d+ × `, text)
	assert.NotContains(t, text, "Goals")

	bad := part{"bad", func(context.Context, *session, config) (figures, error) { return nil, errors.New("no engine") }}
	text, _, err = bad.run(t.Context(), config{})
	require.EqualError(t, err, "section bad: no engine")
	assert.Empty(t, text)
}

func TestReason(t *testing.T) {
	assert.Equal(t, "too many | files", strings.ReplaceAll(reason(errors.New("docker run -d -p 1: exit status 125: docker: Error response from daemon: too many\n| files.\nSee 'docker run --help'.")), "\\|", "|")[:16])
	assert.Equal(t, "publish ports: in use", reason(errors.New("docker: Error response from daemon: driver failed on endpoint c1 (0123): remote: publish ports: in use.\nSee 'docker run --help'."))[:21])
	assert.Len(t, []rune(reason(errors.New(strings.Repeat("ä", 500)))), 202)
	assert.Equal(t, "a \\| b", reason(errors.New("a | b")), "a cell ends at a bar")
}

func TestBusyTime(t *testing.T) {
	busy, err := busyTime("cpu  100 20 3 40000 5000 6 7 800 0 0\ncpu0 1 2 3\n")
	require.NoError(t, err)
	assert.Equal(t, 1360*time.Millisecond, busy, "all but idle, waiting and stolen: 100 + 20 + 3 + 6 + 7")
	_, err = busyTime("intr 1 2 3")
	assert.ErrorContains(t, err, "intr")
	now, err := machineCPU()
	require.NoError(t, err)
	assert.Positive(t, now)
}
