package portmap_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
)

func openIPTables(t *testing.T) portmap.Mapper {
	m, err := portmap.NewIPTables(portmap.IPTablesConfig{})
	require.NoError(t, err)
	return m
}

func TestIPTablesMapper(t *testing.T) { portmaptest.TestMapper(t, openIPTables) }

func TestIPTablesTraffic(t *testing.T) { portmaptest.TestTraffic(t, openIPTables) }
