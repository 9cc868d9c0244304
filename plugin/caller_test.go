package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestProcessStart(t *testing.T) {
	before := time.Now()
	cmd := exec.Command("sleep", "60")
	require.NoError(t, cmd.Start())
	after := time.Now()
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	start, err := processStart(cmd.Process.Pid)
	require.NoError(t, err)
	assert.WithinRange(t, start, before.Add(-20*time.Millisecond), after)

	mine, err := processStart(os.Getpid())
	require.NoError(t, err)
	assert.WithinRange(t, mine, before.Add(-10*time.Minute), after)
	_, err = processStart(1 << 30)
	assert.ErrorIs(t, err, os.ErrNotExist)
}

// Whoever connects is known by its socket; what is no process of ours to see is
// left out.
func TestWithCaller(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	defer ln.Close()
	client, err := net.Dial("unix", ln.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	conn, err := ln.Accept()
	require.NoError(t, err)
	defer conn.Close()
	ctx := context.Background()
	assert.NotEqual(t, ctx, withCaller(ctx, conn))

	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	assert.Equal(t, ctx, withCaller(ctx, a))
}
