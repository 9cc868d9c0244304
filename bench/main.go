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

func (c config) wants(section string) bool { return c.only == "" || c.only == section }

func bench(ctx context.Context, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := config{limit: 5 * time.Minute}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&c.bin, "bin", filepath.Dir(self), "folder of the programs portolan, demo and plot")
	f.StringVar(&c.out, "o", "", "write each section between its markers of this file, too, and the charts into the folder "+chartDir+" beside it")
	f.BoolVar(&c.quick, "quick", false, "leave out 1,000 ports of the built-in driver, which take minutes and gigabytes of memory, and measure what is sustained for 10 seconds")
	f.StringVar(&c.only, "only", "", "one of "+strings.Join(partNames(), ", ")+"; all without it")
	if err := f.Parse(args); err != nil {
		return err
	}
	if c.only != "" && !slices.Contains(partNames(), c.only) {
		return fmt.Errorf("-only %s: must be one of %s", c.only, strings.Join(partNames(), ", "))
	}
	if c.out != "" { // not after half an hour
		for _, name := range partNames() {
			if _, err := replaceBetween(c.out, name, ""); c.wants(name) && err != nil {
				return err
			}
		}
	}
	if err := ownPath(); err != nil {
		return err
	}
	return runParts(ctx, c)
}
