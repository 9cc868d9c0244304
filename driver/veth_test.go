package driver

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/portmap"
)

// Ports of a closed network are kept apart by rules where those stand, else
// isolated, and never neither.
func TestClosedPorts(t *testing.T) {
	r := newRig(t)
	rules, err := portmap.NewNFTables(nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, rules.Load(nil, nil))
		assert.NoError(t, rules.Close())
	})
	r.ok("CreateNetwork", networkOf(1, false, object{dockerBridge + "enable_icc": "false"}))
	r.ok("CreateNetwork", networkOf(2, false, nil))
	requirePort := func(name string, group uint32, isolated bool) {
		t.Helper()
		port := linkOf(t, name)
		flags, err := netlink.LinkGetProtinfo(port)
		require.NoError(t, err)
		require.Equal(t, isolated, flags.Isolated)
		require.Equal(t, group, port.Attrs().Group)
	}

	r.run(1, 10, 2, false, "/sb1")
	r.run(2, 20, 2, false, "/sb2")
	requirePort("pvd000000a00", portmap.PortGroup, true)
	requirePort("pvd000001400", 0, false)

	require.NoError(t, rules.AddNetwork(portmap.Network{ID: id(1), Bridge: bridgeOf(1), NoICC: true}))
	r.run(1, 11, 3, false, "/sb3")
	r.run(2, 21, 3, false, "/sb4")
	requirePort("pvd000000b00", portmap.PortGroup, false)
	requirePort("pvd000001500", 0, false)

	r.restart()
	requirePort("pvd000000a00", portmap.PortGroup, false)
	requirePort("pvd000000b00", portmap.PortGroup, false)
	require.NoError(t, rules.RemoveNetwork(id(1)))
	r.restart()
	requirePort("pvd000000a00", portmap.PortGroup, true)
	requirePort("pvd000000b00", portmap.PortGroup, true)
}
