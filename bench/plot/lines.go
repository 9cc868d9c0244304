package main

import (
	"cmp"
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	width, height = 760, 420 // points
	labels        = 185      // of the width, for names at the lines' ends
)

// lines draws lines with their names at their ends.
func lines(c chart, out io.Writer) error {
	p := newPlot()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.Title, c.X, c.Y
	p.X.Tick.Marker, p.Y.Tick.Marker = round{}, round{}
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Horizontal.Width, grid.Vertical.Color = faint(), vg.Points(0.5), nil
	p.Add(grid)
	var ends ends
	known := colours{}
	for _, l := range c.Lines {
		points := make(plotter.XYs, len(l.Points))
		for j, xy := range l.Points {
			points[j] = plotter.XY{X: xy[0], Y: xy[1]}
			if (c.LogX && xy[0] <= 0) || (c.LogY && xy[1] <= 0) {
				return fmt.Errorf("line %q: %v has no place on a logarithmic axis", l.Name, xy)
			}
		}
		if len(points) == 0 {
			return fmt.Errorf("line %q has no points", l.Name)
		}
		one, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return fmt.Errorf("line %q: %w", l.Name, err)
		}
		colour := known.of(cmp.Or(l.Group, l.Name))
		one.Color, one.Width = colour, vg.Points(2)
		if l.Dashed {
			one.Dashes = []vg.Length{vg.Points(6), vg.Points(3)}
		}
		dots.Color, dots.Shape, dots.Radius = colour, draw.CircleGlyph{}, vg.Points(2.5)
		p.Add(one, dots)
		ends = append(ends, end{l.Name, points[len(points)-1], colour})
	}
	if len(ends) == 0 {
		return errors.New("no lines")
	}
	if p.Y.Min = min(p.Y.Min, 0); c.LogY {
		p.Y.Min = math.Inf(1)
		for _, l := range c.Lines {
			for _, xy := range l.Points {
				p.Y.Min = min(p.Y.Min, xy[1])
			}
		}
		// A whole decade at least, so that there is a number on the axis.
		p.Y.Min = math.Pow(10, math.Floor(math.Log10(p.Y.Min)))
		p.Y.Max = math.Pow(10, math.Ceil(math.Log10(p.Y.Max)))
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, decades{}
	} else {
		p.Y.Max *= 1.05
	}
	if c.LogX {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, decades{}
	}
	canvas := vgsvg.New(width, height)
	dc := draw.New(canvas)
	area := draw.Crop(dc, vg.Points(6), -labels, vg.Points(4), -vg.Points(6))
	p.Draw(area)
	ends.draw(p, p.DataCanvas(area), dc)
	return write(canvas, out)
}

// end is where a line ends, and its name.
type end struct {
	name   string
	at     plotter.XY
	colour color.Color
}

type ends []end

// draw writes the names beside the ends, moved apart where they would cover one
// another, with a thin line to those that were moved.
func (e ends) draw(p *plot.Plot, data, all draw.Canvas) {
	x, y := p.Transforms(&data)
	slices.SortFunc(e, func(a, b end) int { return cmp.Compare(y(a.at.Y), y(b.at.Y)) })
	style := p.X.Tick.Label
	style.Font.Size = vg.Points(11)
	style.XAlign, style.YAlign = draw.XLeft, draw.YCenter
	const apart = 14
	heights := make([]vg.Length, len(e))
	lowest := vg.Length(math.Inf(-1))
	for i, one := range e {
		heights[i] = max(y(one.at.Y), lowest+apart)
		lowest = heights[i]
	}
	// Not over the top: back down.
	highest := data.Max.Y
	for i := range slices.Backward(heights) {
		heights[i] = min(heights[i], highest)
		highest = heights[i] - apart
	}
	for i, one := range e {
		style.Color = one.colour
		from, at := vg.Point{X: x(one.at.X) + vg.Points(4), Y: y(one.at.Y)}, vg.Point{X: x(one.at.X) + vg.Points(8), Y: heights[i]}
		if moved := at.Y - from.Y; moved > 4 || moved < -4 {
			at.X += vg.Points(8)
			all.StrokeLine2(draw.LineStyle{Color: one.colour, Width: vg.Points(0.5)}, from.X, from.Y, at.X-vg.Points(2), at.Y)
		}
		all.FillText(style, at, one.name)
	}
}
