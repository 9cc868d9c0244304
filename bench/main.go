package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/portolan/portolan/bench/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if len(os.Args) == 3 && os.Args[1] == "floor" {
		exitOn(serveFloor(ctx, os.Args[2]))
		return
	}
	if len(os.Args) == 3 && os.Args[1] == "load" {
		exitOn(runLoad(os.Args[2]))
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		exitOn(load.Serve())
		return
	}
	exitOn(bench(ctx, os.Args[1:]))
}

func exitOn(err error) {
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// config is the command line.
type config struct {
	bin   string        // folder of portolan and demo
	out   string        // Markdown file with the markers, or ""
	quick bool          // leave out what takes minutes
	only  string        // one section, or "" for all
	limit time.Duration // the longest that one docker command may take
}

// sections are the parts of a session.
var sections = []string{"ports", "localhost", "shim", "packages"}

func (c config) wants(section string) bool { return c.only == "" || c.only == section }

func bench(ctx context.Context, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := config{limit: 5 * time.Minute}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&c.bin, "bin", filepath.Dir(self), "folder of the programs portolan and demo")
	f.StringVar(&c.out, "o", "", "write the tables between the markers of this file, too; with -only those of that section")
	f.BoolVar(&c.quick, "quick", false, "leave out 1,000 ports of the built-in driver, which take two minutes and gigabytes of memory")
	f.StringVar(&c.only, "only", "", "one of "+strings.Join(sections, ", ")+"; all without it")
	if err := f.Parse(args); err != nil {
		return err
	}
	if c.only != "" && !slices.Contains(sections, c.only) {
		return fmt.Errorf("-only %s: must be one of %s", c.only, strings.Join(sections, ", "))
	}
	if c.out != "" { // not after six minutes
		if _, err := replaceBetween(c.out, c.only, ""); err != nil {
			return err
		}
	}
	m, err := describeMachine()
	if err != nil {
		return err
	}
	r := report{machine: m, started: time.Now()}
	s := &session{}
	if err := s.run(ctx, func() error { return r.measure(ctx, s, c) }); err != nil {
		return err
	}
	if c.wants("packages") {
		if r.micro, err = microbenchmarks(ctx); err != nil {
			return err
		}
	}
	r.ended, r.loadAfter = time.Now(), loadAverage()
	text := r.markdown()
	fmt.Print(text)
	if c.out == "" {
		return nil
	}
	whole, err := replaceBetween(c.out, c.only, text)
	if err != nil {
		return err
	}
	return os.WriteFile(c.out, whole, 0o644)
}
