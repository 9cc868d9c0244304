package portmap

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A program that stops in the middle, or that leaves somebody behind with its
// output open, keeps nobody waiting.
func TestIPTablesProgramThatIsStuck(t *testing.T) {
	for name, script := range map[string]string{
		"stopped":    "kill -STOP $$",
		"left alone": "sleep 60 & echo $! >&3; exit 0",
		"both":       "sleep 60 & echo $! >&3; kill -STOP $$",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			program, child := filepath.Join(dir, "iptables"), filepath.Join(dir, "child")
			require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\nexec 3>"+child+"\n"+script+"\n"), 0o755))
			t.Cleanup(func() {
				if text, _ := os.ReadFile(child); len(text) > 0 {
					pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
					require.NoError(t, err)
					_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
				}
			})
			done := make(chan error, 1)
			go func() {
				_, err := iptRunWithin(500*time.Millisecond, "", program, "-S")
				done <- err
			}()
			select {
			case err := <-done:
				e := &IPTablesError{}
				require.ErrorAs(t, err, &e)
				assert.Equal(t, []string{program, "-S"}, e.Args)
				if name != "left alone" { // which has ended in time, but for its output
					require.ErrorIs(t, err, context.DeadlineExceeded)
					assert.ErrorContains(t, err, "no end for 500ms; it was killed")
				}
			case <-time.After(20 * time.Second):
				require.Fail(t, "it waits still")
			}
		})
	}
}
