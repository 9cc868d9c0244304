//go:build faults

package fault

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The process that passes points is this test, started again.
func TestPoint(t *testing.T) {
	if dir != "" {
		for _, name := range []string{"a", "b", "a", "c"} {
			Point(name)
		}
		return
	}
	folder := t.TempDir()
	trace := filepath.Join(folder, "trace")
	pass := func() error {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPoint$")
		cmd.Env = append(os.Environ(), "PORTOLAN_FAULTS="+folder)
		return cmd.Run()
	}
	require.NoError(t, pass())
	require.NoFileExists(t, trace)

	require.NoError(t, os.WriteFile(trace, nil, 0o600))
	require.NoError(t, pass())
	got, err := os.ReadFile(trace)
	require.NoError(t, err)
	require.Equal(t, "a\nb\na\nc\n", string(got))

	require.NoError(t, os.WriteFile(trace, nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(folder, "kill"), []byte("a 2"), 0o600))
	var ended *exec.ExitError
	require.ErrorAs(t, pass(), &ended)
	require.Equal(t, syscall.SIGKILL, ended.Sys().(syscall.WaitStatus).Signal())
	got, err = os.ReadFile(trace)
	require.NoError(t, err)
	require.Equal(t, "a\nb\na\n", string(got))
}
