package portmaptest_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
)

func TestFake(t *testing.T) {
	portmaptest.TestMapper(t, func(*testing.T) portmap.Mapper { return portmaptest.NewFake() })
}

func TestFakeFails(t *testing.T) {
	f := portmaptest.NewFake()
	require.NoError(t, f.AddNetwork(portmap.Network{ID: "n", Bridge: "br"}))
	cause := errors.New("no memory")
	f.Fail = func(op string, p portmap.Publication) error {
		if op == "Map" && p.Endpoint == "ep" {
			return cause
		}
		return nil
	}
	p := portmap.Publication{Target: portmap.Target{Endpoint: "ep", Network: "n"}, Mappings: portmaptest.Mappings(t, "80->80")}
	require.ErrorIs(t, f.Map(p), cause)
	require.Empty(t, f.Publications())
	p.Endpoint = "other"
	require.NoError(t, f.Map(p))
	require.Len(t, f.Publications(), 1)
}
