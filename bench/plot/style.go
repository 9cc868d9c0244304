package main

import (
	"bytes"
	"image/color"
	"io"
	"math"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// ours is the colour of Portolan, others those of its peers: they can be told
// apart by those who see red and green alike, and are darker than Okabe and
// Ito's, for they are text, too. Contrast to white and to black is at least 3 to
// 1.
var (
	ours   = color.NRGBA{0x1f, 0x78, 0xc8, 0xff} // blue
	others = []color.NRGBA{
		{0xc4, 0x51, 0x00, 0xff}, // vermilion
		{0xa3, 0x79, 0x00, 0xff}, // ochre
		{0x80, 0x80, 0x80, 0xff}, // grey
		{0x00, 0x8f, 0x68, 0xff}, // green
		{0xb6, 0x5a, 0x95, 0xff}, // purple
	}
)

// colours gives each name its own.
type colours map[string]color.NRGBA

func (c colours) of(name string) color.NRGBA {
	if strings.HasPrefix(strings.ToLower(name), "portolan") {
		return ours
	}
	if _, found := c[name]; !found {
		c[name] = others[len(c)%len(others)]
	}
	return c[name]
}

// ink is what axes and text have.
var ink = color.NRGBA{0x74, 0x7d, 0x87, 0xff}

func newPlot() *plot.Plot {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	p := plot.New()
	p.BackgroundColor = nil
	p.Title.TextStyle.Color = ink
	p.Title.TextStyle.Font.Size = vg.Points(13)
	p.Title.Padding = vg.Points(8)
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Color, a.Label.TextStyle.Color, a.Tick.Color, a.Tick.Label.Color = ink, ink, ink, ink
		a.Label.TextStyle.Font.Size, a.Tick.Label.Font.Size = vg.Points(11), vg.Points(10)
		a.Label.Padding = vg.Points(4)
	}
	return p
}

// faint is a colour for the grid.
func faint() color.Color { return color.NRGBA{ink.R, ink.G, ink.B, 0x60} }

// write writes a canvas, with a font that viewers have.
func write(c *vgsvg.Canvas, out io.Writer) error {
	var svg bytes.Buffer
	if _, err := c.WriteTo(&svg); err != nil {
		return err
	}
	text := strings.ReplaceAll(svg.String(), "font-family:Liberation Sans;", "font-family:Liberation Sans,Arial,Helvetica,sans-serif;")
	_, err := io.WriteString(out, text)
	return err
}

// decades are the ticks of a logarithmic axis: a number at each power of ten,
// and nothing but lines between them.
type decades struct{}

// Ticks implements plot.Ticker.
func (decades) Ticks(low, high float64) (ticks []plot.Tick) {
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for i := 1.0; i < 10; i++ {
			v := i * math.Pow(10, e)
			if v < low*(1-1e-9) || v > high*(1+1e-9) {
				continue
			}
			label := ""
			if i == 1 {
				label = number(v)
			}
			ticks = append(ticks, plot.Tick{Value: v, Label: label})
		}
	}
	return ticks
}

// round are the library's ticks with numbers as people write them.
type round struct{}

// Ticks implements plot.Ticker.
func (round) Ticks(low, high float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = number(ticks[i].Value)
		}
	}
	return ticks
}

// number writes 10000 as 10,000.
func number(v float64) string {
	s := strconv.FormatFloat(v, 'f', -1, 64)
	whole, rest, fraction := strings.Cut(s, ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if fraction {
		return whole + "." + rest
	}
	return whole
}
