package bpfhost

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzUnescape writes a path as the kernel does in mountinfo (seq_path escapes
// blanks, tabs, newlines and backslashes) and reads it back.
func FuzzUnescape(f *testing.F) {
	for _, path := range []string{"/sys/fs/cgroup", "/mnt/a b", "/mnt/\\040", "/mnt/\t\n\\", ""} {
		f.Add(path)
	}
	kernel := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
	f.Fuzz(func(t *testing.T, path string) {
		require.Equal(t, path, unescape(kernel.Replace(path)))
		unescape(path)
	})
}
