package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

func TestPortRange(t *testing.T) {
	assert.Equal(t, "10000:10000/udp", portRange(1))
	assert.Equal(t, "10000-10999:10000-10999/udp", portRange(1000))
}

func TestPlan(t *testing.T) {
	thousand := func(quick bool, free int64) int {
		for _, p := range plan(quick, free) {
			if p.ports == 1000 {
				return p.times[builtin]
			}
			if p.ports == 1 {
				assert.Equal(t, pairs, p.times[nftables])
				assert.Equal(t, pairs, p.times[builtin], "pairs are of one round")
			}
		}
		return -1
	}
	assert.Equal(t, 1, thousand(false, 64<<30))
	assert.Equal(t, 0, thousand(true, 64<<30))
	assert.Equal(t, 0, thousand(false, 1<<30), "2,000 processes do not fit")
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
