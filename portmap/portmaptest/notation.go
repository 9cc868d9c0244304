package portmaptest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

// Mappings parses the notation of Mapping.String, as "8080->80" or
// "[::1]:53-54->153-154/udp", and fails the test on anything else.
func Mappings(t testing.TB, notation ...string) []portmap.Mapping {
	t.Helper()
	ms := make([]portmap.Mapping, 0, len(notation))
	for _, s := range notation {
		m, err := portmap.ParseMapping(s)
		require.NoError(t, err)
		ms = append(ms, m)
	}
	return ms
}
