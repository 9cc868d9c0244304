// Command plot draws one chart of the benchmarks as SVG: it reads a chart in JSON
// from stdin and writes to stdout.
//
// It is a module of its own, so that what it takes to draw is no business of
// the network driver's.
//
// The background is left out and every colour has enough contrast on white and
// on black, because a page shows the same picture in light and in dark mode.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// chart has lines over one pair of axes, or panels of bars side by side.
type chart struct {
	Title      string
	X, Y       string
	LogX, LogY bool
	Lines      []struct {
		Name   string
		Group  string // those of one group have one colour; "" is Name
		Points [][2]float64
		Dashed bool
	}
	Names  []string // of the bars, from above
	Panels []struct {
		Title  string
		Values []float64 // below 0: none
	}
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "plot: %v\n", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	var c chart
	if err := json.NewDecoder(in).Decode(&c); err != nil {
		return err
	}
	if len(c.Panels) > 0 {
		return bars(c, out)
	}
	return lines(c, out)
}
