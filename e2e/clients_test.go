package e2e

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/enginetest"
)

// Clients other than the docker command are a module of their own, so that
// nobody else gets what they depend on.
func TestClients(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("go", "build", "-C", "clients", "-trimpath", "-o", programs, "./...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	_, err := enginetest.Run(cmd)
	require.NoError(t, err)
	runShim(t, "testdata/clients")
}
