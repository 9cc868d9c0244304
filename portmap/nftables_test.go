package portmap_test

import (
	"testing"

	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
	"github.com/stretchr/testify/require"
)

func openNFTables(t *testing.T) portmap.Mapper {
	m, err := portmap.NewNFTables(nil)
	require.NoError(t, err)
	return m
}

func TestNFTables(t *testing.T) { portmaptest.TestMapper(t, openNFTables) }

func TestNFTablesTraffic(t *testing.T) { portmaptest.TestTraffic(t, openNFTables) }
