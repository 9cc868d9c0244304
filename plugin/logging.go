package main

import (
	"io"
	"log/slog"

	"github.com/spf13/pflag"
)

// logFlags are what the commands that go on running have in common.
type logFlags struct{ level, format choice }

func newLogFlags() *logFlags {
	return &logFlags{
		level:  choice{"info", []string{"debug", "info", "warn", "error"}},
		format: choice{"text", []string{"text", "json"}},
	}
}

func (l *logFlags) add(f *pflag.FlagSet) {
	f.Var(&l.level, "log-level", "the least that is logged")
	f.Var(&l.format, "log-format", "how it is logged, on stderr")
}

func (l *logFlags) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(l.level.value)) // choice has checked it
	opts := &slog.HandlerOptions{Level: level}
	if l.format.value == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
