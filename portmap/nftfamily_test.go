package portmap

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/stretchr/testify/require"
)

// TestNoBridgeFamily is a kernel without nftables of family bridge, for which
// one stands in that no kernel has any more: DECnet.
func TestNoBridgeFamily(t *testing.T) {
	var log strings.Builder
	m, err := NewNFTables(slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	m.ports.family = nftables.TableFamily(12)
	require.NoError(t, m.Load([]Network{{ID: "n", Bridge: "plbr0", NoICC: true}}, nil))
	require.False(t, PortsApart(), "a driver isolates the ports")
	repaired, err := m.Check()
	require.NoError(t, err)
	require.False(t, repaired)
	require.NoError(t, m.AddNetwork(Network{ID: "m", Bridge: "plbr1", NoICC: true}))
	require.Equal(t, 1, strings.Count(log.String(), "no nftables of family bridge"), "said once: %s", log.String())
	require.NoError(t, m.Load(nil, nil))
	require.NoError(t, m.Close())
}
