package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// chartDir is the folder of the charts, beside the page.
const chartDir = "bench"

// chart is what the program in bench/plot draws; it reads the same fields. It
// has lines, or panels of bars.
type chart struct {
	File  string `json:"-"` // without .svg
	Title string
	X, Y  string // what the axes are, with units

	LogX, LogY bool
	Lines      []line `json:",omitempty"`

	Names  []string `json:",omitempty"` // of the bars, from above
	Panels []panel  `json:",omitempty"` // side by side
}

// line is one of many in a chart.
type line struct {
	Name   string
	Group  string `json:",omitempty"` // those of one group have one colour; "" is Name
	Points [][2]float64
	Dashed bool
}

// panel has a bar for each name; what is less than 0 was not measured.
type panel struct {
	Title  string
	Values []float64
}

// draw writes dir/File.svg.
func (c chart) draw(ctx context.Context, program, dir string) error {
	input, err := json.Marshal(c)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program)
	var svg, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &svg, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("draw %s: %w: %s", c.File, err, stderr.String())
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, c.File+".svg"), svg.Bytes(), 0o644)
}
