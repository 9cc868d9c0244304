package main

import (
	"fmt"
	"image/color"
	"io"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	panelWidth = 150 // points
	namesWidth = 240
	barHeight  = 22
	aroundBars = 96 // titles and axis
)

// bars draws panels side by side, of horizontal bars with their values at their
// ends. The names stand left of the first.
func bars(c chart, out io.Writer) error {
	for _, one := range c.Panels {
		if len(one.Values) != len(c.Names) {
			return fmt.Errorf("panel %q: %d values for %d names", one.Title, len(one.Values), len(c.Names))
		}
	}
	w := vg.Length(namesWidth + panelWidth*len(c.Panels))
	h := vg.Length(aroundBars + barHeight*len(c.Names))
	canvas := vgsvg.New(w, h)
	all := draw.New(canvas)
	style := newPlot().Title.TextStyle
	style.XAlign, style.YAlign = draw.XCenter, draw.YTop
	all.FillText(style, vg.Point{X: w / 2, Y: h - vg.Points(2)}, c.Title)
	for i, one := range c.Panels {
		left := vg.Length(namesWidth + panelWidth*i)
		area := draw.Crop(all, left, left+panelWidth-w-vg.Points(14), vg.Points(18), -vg.Points(22))
		p, err := barPanel(one.Values)
		if err != nil {
			return fmt.Errorf("panel %q: %w", one.Title, err)
		}
		p.Title.Text = one.Title
		p.Title.TextStyle.Font.Size = vg.Points(11)
		p.Draw(area)
		data := p.DataCanvas(area)
		x, y := p.Transforms(&data)
		if i == 0 {
			style := p.X.Tick.Label
			style.Font.Size = vg.Points(11)
			style.XAlign, style.YAlign = draw.XLeft, draw.YCenter
			for j, name := range c.Names {
				style.Color = colourOf(name)
				all.FillText(style, vg.Point{X: vg.Points(4), Y: y(place(j, c.Names))}, name)
			}
		}
		style := p.X.Tick.Label
		style.XAlign, style.YAlign = draw.XLeft, draw.YCenter
		for j, v := range one.Values {
			text, end := "–", 0.0
			if v >= 0 {
				text, end = fmt.Sprintf("%.2f", v), v
				bar := vg.Rectangle{Min: vg.Point{X: x(0), Y: y(place(j, c.Names)) - barHeight*0.32}, Max: vg.Point{X: x(v), Y: y(place(j, c.Names)) + barHeight*0.32}}
				all.SetColor(colourOf(c.Names[j]))
				all.Fill(bar.Path())
			}
			all.FillText(style, vg.Point{X: x(end) + vg.Points(3), Y: y(place(j, c.Names))}, text)
		}
	}
	style = newPlot().X.Label.TextStyle
	style.XAlign, style.YAlign = draw.XCenter, draw.YBottom
	all.FillText(style, vg.Point{X: namesWidth + (w-namesWidth)/2, Y: vg.Points(2)}, c.X)
	return write(canvas, out)
}

// place is a bar's height on the axis; the first is at the top.
func place(i int, names []string) float64 { return float64(len(names) - 1 - i) }

// colourOf is that of Portolan, or of all others.
func colourOf(name string) color.NRGBA {
	if one := (colours{}).of(name); one == ours {
		return ours
	}
	return others[0]
}

// barPanel has the axes of one panel.
func barPanel(values []float64) (*plot.Plot, error) {
	p := newPlot()
	most := 1.0
	for _, v := range values {
		most = max(most, v)
	}
	p.X.Min, p.X.Max = 0, most*1.3 // the values stand behind the bars
	p.Y.Min, p.Y.Max = -0.6, float64(len(values))-0.4
	p.X.Tick.Marker = plot.ConstantTicks{{Value: 0, Label: "0"}, {Value: 0.5, Label: "0.5"}, {Value: 1, Label: "1"}}
	p.HideY()
	one, err := plotter.NewLine(plotter.XYs{{X: 1, Y: p.Y.Min}, {X: 1, Y: p.Y.Max}})
	if err != nil {
		return nil, err
	}
	one.Color, one.Width = faint(), vg.Points(1)
	one.Dashes = []vg.Length{vg.Points(3), vg.Points(3)}
	p.Add(one)
	return p, nil
}
