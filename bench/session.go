package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
)

// session is the part of testing.TB that package enginetest needs, outside of a
// test: what belongs to it ends with it.
type session struct {
	testing.TB // nil: a method that is missing below is a crash

	mu       sync.Mutex // guards below
	failed   error
	cleanups []func()
}

// errFailed stands for what Errorf has already said.
var errFailed = errors.New("see above")

// run runs f and then the cleanups, last first, whether f returns, calls
// FailNow, or panics.
func (s *session) run(ctx context.Context, f func() error) error {
	done := make(chan struct{})
	go s.body(ctx, f, done)
	<-done
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return s.failed
}

func (s *session) body(ctx context.Context, f func() error, done chan<- struct{}) {
	defer close(done)
	defer s.cleanUp()
	// What fails because of Ctrl-C is no failure, and no log need be shown.
	if err := f(); err != nil && ctx.Err() == nil {
		s.fail(err)
	}
}

func (s *session) cleanUp() {
	s.mu.Lock()
	cleanups := s.cleanups
	s.mu.Unlock()
	for _, f := range slices.Backward(cleanups) {
		f()
	}
}

func (s *session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil || errors.Is(s.failed, errFailed) {
		s.failed = err
	}
}

// Helper implements testing.TB.
func (s *session) Helper() {}

// Cleanup implements testing.TB.
func (s *session) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

// Logf implements testing.TB.
func (s *session) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// Errorf implements testing.TB.
func (s *session) Errorf(format string, args ...any) {
	s.Logf(format, args...)
	s.fail(errFailed)
}

// FailNow implements testing.TB.
func (s *session) FailNow() {
	s.fail(errFailed)
	runtime.Goexit()
}

// Failed implements testing.TB.
func (s *session) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed != nil
}
