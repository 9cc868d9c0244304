package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
)

// lineHandler prints a log as a person reads it: the message and the values, a
// line each, without time and level. It is not for concurrent use.
type lineHandler struct {
	out   io.Writer
	count int
}

func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	h.count++
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.Value.String()
		return true
	})
	_, err := fmt.Fprintln(h.out, line)
	return err
}

func (h *lineHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

func (h *lineHandler) WithGroup(string) slog.Handler { return h }
