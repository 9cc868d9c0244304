package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

// draws runs the program's work, checks that what comes is XML, and returns it.
func draws(t *testing.T, input string) string {
	t.Helper()
	var out strings.Builder
	if err := run(strings.NewReader(input), &out); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(out.String())); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			t.Fatalf("%v in %s", err, out.String())
		}
	}
}

func has(t *testing.T, svg string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(svg, ">"+w+"</text>") {
			t.Errorf("no text %q", w)
		}
	}
}

func TestLines(t *testing.T) {
	svg := draws(t, `{"Title": "start", "X": "ports", "Y": "seconds", "LogX": true, "LogY": true, "Lines": [
		{"Name": "Portolan, nftables", "Points": [[1, 0.3], [10000, 0.5]]},
		{"Name": "floor", "Dashed": true, "Points": [[1, 0.3], [10000, 0.5]]}]}`)
	has(t, svg, "start", "ports", "seconds", "Portolan, nftables", "floor", "10,000", "0.1", "1")
	if !strings.Contains(svg, "stroke-dasharray") {
		t.Error("no dashed line")
	}
	if strings.Contains(svg, "fill:#FFFFFF") {
		t.Error("a white background is none for dark mode")
	}
	draws(t, `{"Lines": [{"Name": "a single point", "Points": [[1, 2]]}]}`)
}

func TestBars(t *testing.T) {
	svg := draws(t, `{"Title": "rates", "X": "1 = straight", "Names": ["Portolan", "HAProxy"], "Panels": [
		{"Title": "UDP", "Values": [0.93, -1]}, {"Title": "TCP", "Values": [0.5, 1.25]}]}`)
	has(t, svg, "rates", "1 = straight", "Portolan", "HAProxy", "UDP", "TCP", "0.93", "0.50", "1.25", "–")
}

func TestNothingToDraw(t *testing.T) {
	for input, want := range map[string]string{
		`{}`:                         "no lines",
		`{"Lines": [{"Name": "x"}]}`: `line "x" has no points`,
		`{"LogY": true, "Lines": [{"Name": "x", "Points": [[1, 0]]}]}`:     "no place on a logarithmic axis",
		`{"Names": ["a", "b"], "Panels": [{"Title": "p", "Values": [1]}]}`: "1 values for 2 names",
		`{`: "unexpected EOF",
	} {
		err := run(strings.NewReader(input), io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, not %s", input, err, want)
		}
	}
}
