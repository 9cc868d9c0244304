//go:build compose

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// docker compose and buildx are what scripts/compose.sh has built, which takes
// minutes: `make compose` does both, and `make test` neither.
func TestCompose(t *testing.T) {
	tools, err := filepath.Abs("../build/tools")
	require.NoError(t, err)
	t.Setenv("PATH", tools+string(os.PathListSeparator)+os.Getenv("PATH"))
	runShim(t, "testdata/compose")
}
