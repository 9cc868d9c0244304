package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// median is the middle one; of an even number, the mean of the middle two. Of
// none it is 0.
func median[T int | int64 | float64 | time.Duration](values []T) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// each takes one figure of every sample.
func each[T any](samples []sample, figure func(sample) T) []T {
	out := make([]T, len(samples))
	for i, s := range samples {
		out[i] = figure(s)
	}
	return out
}

// medianOf is the median of one figure of samples.
func medianOf[T int | int64 | float64 | time.Duration](samples []sample, figure func(sample) T) T {
	return median(each(samples, figure))
}

func startOf(s sample) time.Duration  { return s.start }
func removeOf(s sample) time.Duration { return s.remove }

// ratios are those of a's to b's figures of the same round.
func ratios(a, b []sample, figure func(sample) time.Duration) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = float64(figure(a[i])) / float64(figure(b[i]))
	}
	return out
}

// over is the median of what a's figures are over b's of the same round, in
// which the machine was as busy for both.
func over(a, b []sample, figure func(sample) time.Duration) time.Duration {
	out := make([]time.Duration, min(len(a), len(b)))
	for i := range out {
		out[i] = figure(a[i]) - figure(b[i])
	}
	return median(out)
}

// spread is the lower and the upper quartile: what half of the values lie
// between.
func spread[T cmp.Ordered](values []T) (low, high T) {
	if len(values) == 0 {
		return low, high
	}
	sorted := slices.Sorted(slices.Values(values))
	quarter := (len(sorted) - 1) / 4
	return sorted[quarter], sorted[len(sorted)-1-quarter]
}

func millis(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d >= 10*time.Millisecond || d <= -10*time.Millisecond:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f", float64(bytes)/(1<<20)) }

func gib(bytes int64) string { return fmt.Sprintf("%.1f", float64(bytes)/(1<<30)) }
