package store

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzOpen opens any bytes as a state file, as they are and as the body of a
// file whose header is right: nothing panics, what loads can be written and
// loads again, and what does not is kept.
//
// Each run writes to the disk, so give -fuzzminimizetime as a number (20x): by
// time, the first input takes a minute.
func FuzzOpen(f *testing.F) {
	good, _ := sample(f)
	f.Add(good)
	_, body, err := unseal(good)
	require.NoError(f, err)
	f.Add(body)
	f.Add([]byte{})
	f.Add([]byte(`{"networks":[{"id":"n","subnet4":"10.0.0.0/8","snat6":"fe80::1%x"}],"sysctls":null}`))
	f.Add([]byte(`{"endpoints":[{"id":"e","created":"2026-01-01T00:00:00.5+05:30","exposed":[{}],"owner":{}}]}`))
	f.Add(headerLine(1, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		openAny(t, data)
		openAny(t, slices.Concat(headerLine(1, data), []byte("\n"), data))
	})
}

func openAny(t *testing.T, data []byte) {
	dir := dirWith(t, data)
	s, err := Open(dir, nil)
	if err != nil {
		require.ErrorIs(t, err, ErrNewer)
		kept, err := os.ReadFile(filepath.Join(dir, stateName))
		require.NoError(t, err)
		require.Equal(t, data, kept)
		return
	}
	defer s.Close()
	if s.Damaged() != "" {
		require.Empty(t, contentsOf(s))
		kept, err := os.ReadFile(s.Damaged())
		require.NoError(t, err)
		require.Equal(t, data, kept)
		return
	}
	require.NoError(t, s.PutEndpoint(endpoint("put", "n")))
	want := contentsOf(s)
	require.Equal(t, want, contentsOf(reopen(t, s)))
}
