package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/portolan/portolan/internal/enginetest"
)

// part is one section of a run, which can run alone, with what it needs made
// before it and taken away after it.
type part struct {
	name    string
	measure func(context.Context, *session, config) (figures, error)
}

var parts = []part{
	{"ports", measurePorts},
	{"established", measureEstablished},
	{"localhost", measureTraffic},
	{"sustained", measureSustained},
	{"network", measureNetwork},
	{"shim", measureShim},
	{"packages", measurePackages},
}

func partNames() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// figures are what a part has measured. A peer that was missing or failed is a
// line that says so.
type figures interface {
	tables() string
	goals() []goal // what the project has promised itself
	charts() []chart
}

// plain is embedded by figures that need no chart.
type plain struct{}

func (plain) charts() []chart { return nil }

// goal is a line of the goals.
type goal struct {
	text, measured string
	met            bool
}

// atLeast is a goal about a ratio, which is cut to two digits, so that none that
// was missed by less looks as if it were met.
func atLeast(text string, ratio, least float64) goal {
	return goal{text, fmt.Sprintf("%.2f", math.Floor(ratio*100+1e-9)/100), ratio >= least}
}

// atMost is one the other way round.
func atMost(text string, ratio, most float64) goal {
	return goal{text, fmt.Sprintf("%.2f", math.Ceil(ratio*100-1e-9)/100), ratio <= most}
}

// head is what the figures of a part depend on.
type head struct {
	machine          machine
	engine, portolan string
	loadAfter        string
	started, ended   time.Time
}

// run measures a part and returns what goes between its markers. What it has
// started has ended then.
func (p part) run(ctx context.Context, c config) (text string, charts []chart, err error) {
	h := head{started: time.Now()}
	if h.machine, err = describeMachine(); err != nil {
		return "", nil, err
	}
	h.engine = programVersion("dockerd", "--version")
	h.portolan = programVersion(filepath.Join(c.bin, "portolan"), "version")
	s := &session{}
	var f figures
	err = s.run(ctx, func() error {
		f, err = p.measure(ctx, s, c)
		return err
	})
	if err != nil {
		return "", nil, fmt.Errorf("section %s: %w", p.name, err)
	}
	h.ended, h.loadAfter = time.Now(), loadAverage()
	return h.String() + goalsTable(f.goals()) + f.tables(), f.charts(), nil
}

// String is the line above the tables.
func (h head) String() string {
	return fmt.Sprintf("Machine: %s. %s. Portolan: %s. Load average of 1, 5 and 15 minutes: %s before, %s after. %s, in %s.\n",
		h.machine, h.engine, h.portolan, h.machine.loadBefore, h.loadAfter,
		h.started.UTC().Format("2006-01-02 15:04 UTC"), h.ended.Sub(h.started).Round(time.Second))
}

func goalsTable(goals []goal) string {
	if len(goals) == 0 {
		return ""
	}
	t := table{head: []string{"goal", "measured", ""}}
	for _, g := range goals {
		verdict := "missed"
		if g.met {
			verdict = "met"
		}
		t.add(g.text, g.measured, verdict)
	}
	return section("Goals", t)
}

// runParts runs the parts that were asked for and writes each as soon as it is
// there. One that fails does not keep the others from running; the page keeps
// what it has of it.
func runParts(ctx context.Context, c config) error {
	var failed []error
	for _, p := range parts {
		if !c.wants(p.name) {
			continue
		}
		text, charts, err := p.run(ctx, c)
		if ctx.Err() != nil {
			return errors.Join(append(failed, err)...)
		}
		if err == nil {
			fmt.Printf("## %s\n\n%s\n", p.name, text)
			err = c.write(ctx, p.name, text, charts)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// write puts a part into the page, and its charts into the folder beside it.
func (c config) write(ctx context.Context, name, text string, charts []chart) error {
	if c.out == "" {
		return nil
	}
	for _, ch := range charts {
		if len(ch.Lines) == 0 && len(ch.Panels) == 0 {
			continue // all that it would show has failed, as the table says
		}
		if err := ch.draw(ctx, filepath.Join(c.bin, "plot"), filepath.Join(filepath.Dir(c.out), chartDir)); err != nil {
			return err
		}
	}
	whole, err := replaceBetween(c.out, name, text)
	if err != nil {
		return err
	}
	return os.WriteFile(c.out, whole, 0o644)
}

// reason is why something failed, short enough for a cell of a table: what an
// plugin or an engine answered, or the beginning of what there is.
func reason(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if _, answer, found := strings.Cut(text, "Error response from daemon: "); found {
		text = answer
	}
	if _, plugin, found := strings.Cut(text, ": remote: "); found {
		text = plugin
	}
	text, _, _ = strings.Cut(text, " See 'docker run --help'")
	const most = 200
	if r := []rune(text); len(r) > most {
		text = string(r[:most]) + " …"
	}
	return strings.ReplaceAll(text, "|", "\\|")
}

// ownPath makes programs be those of the engine that ENGINE names.
func ownPath() error { return os.Setenv("PATH", enginetest.Path()) }
