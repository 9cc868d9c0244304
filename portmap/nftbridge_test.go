package portmap_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

// closed is a network whose containers may not talk to one another.
func closed(id, bridge string) portmap.Network {
	return portmap.Network{ID: id, Bridge: bridge, NoICC: true}
}

func bothMappers(t *testing.T, run func(t *testing.T, open func(*testing.T) portmap.Mapper)) {
	for name, open := range map[string]func(*testing.T) portmap.Mapper{"nftables": openNFTables, "iptables": openIPTables} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() {
				assert.NoError(t, portmap.Cleanup(nil))
				require.NotContains(t, bridgeTables(t), "portolan")
			})
			run(t, open)
		})
	}
}

// bridgeTables are the tables of family bridge, by name.
func bridgeTables(t *testing.T) string {
	t.Helper()
	return command(t, "nft", "list", "tables", "bridge")
}

// TestPortsApart has the table come with the first network that wants it and go
// with the last, over a restart.
func TestPortsApart(t *testing.T) {
	bothMappers(t, func(t *testing.T, open func(*testing.T) portmap.Mapper) {
		m := open(t)
		require.NoError(t, m.Load([]portmap.Network{rigNet}, nil))
		require.NotContains(t, bridgeTables(t), "portolan", "nobody else pays for it")
		require.False(t, portmap.PortsApart())
		require.NoError(t, m.AddNetwork(closed("n1", "plbr1")))
		require.True(t, portmap.PortsApart())
		require.NoError(t, m.AddNetwork(closed("n2", "plbr2")))
		require.NoError(t, m.RemoveNetwork("n1"))
		require.True(t, portmap.PortsApart())
		require.NoError(t, m.Close())
		require.True(t, portmap.PortsApart(), "it outlives the daemon")

		m = open(t)
		require.NoError(t, m.Load([]portmap.Network{rigNet, closed("n2", "plbr2")}, nil))
		require.True(t, portmap.PortsApart())
		refused(t, "nft", "delete", "table", "bridge", "portolan")
		require.NoError(t, m.RemoveNetwork(rigNet.ID))
		require.True(t, portmap.PortsApart())
		require.NoError(t, m.RemoveNetwork("n2"))
		require.False(t, portmap.PortsApart())
		require.NoError(t, m.AddNetwork(closed("n2", "plbr2")))
		require.True(t, portmap.PortsApart(), "made again")
		require.NoError(t, m.AddNetwork(portmap.Network{ID: "n2", Bridge: "plbr2"}))
		require.False(t, portmap.PortsApart(), "opened")
		require.NoError(t, m.AddNetwork(closed("n2", "plbr2")))
		require.NoError(t, m.Close())

		require.Contains(t, bridgeTables(t), "portolan")
		m = open(t)
		require.NoError(t, m.Load([]portmap.Network{rigNet}, nil))
		require.NotContains(t, bridgeTables(t), "portolan", "what an earlier process left and nobody wants")
		require.NoError(t, m.Load([]portmap.Network{closed("n1", "plbr1")}, nil))
		require.NoError(t, m.Close())
	})
}

// TestPortsApartOwner has other processes try to take the table away. It wants
// Linux 6.9.
func TestPortsApartOwner(t *testing.T) {
	bothMappers(t, func(t *testing.T, open func(*testing.T) portmap.Mapper) {
		m := open(t)
		t.Cleanup(func() { assert.NoError(t, m.Close()) })
		require.NoError(t, m.Load([]portmap.Network{closed("n1", "plbr1")}, nil))
		command(t, "nft", "flush", "ruleset")
		refused(t, "nft", "flush", "table", "bridge", "portolan")
		refused(t, "nft", "insert", "rule", "bridge", "portolan", "after-br-netfilter", "accept")
		require.True(t, portmap.PortsApart())
		require.ErrorContains(t, portmap.Cleanup(nil), "is another process its owner")
		require.True(t, portmap.PortsApart())
		_, err := m.Check() // iptables' rules are not kept by the kernel
		require.NoError(t, err)
		require.NoError(t, m.Load(nil, nil))
	})
}

// TestPortsApartWithoutOwner repairs the table of kernels that know no owner.
func TestPortsApartWithoutOwner(t *testing.T) {
	bothMappers(t, func(t *testing.T, open func(*testing.T) portmap.Mapper) {
		for _, damage := range []string{
			"flush table bridge portolan",
			"flush chain bridge portolan after-br-netfilter",
			"insert rule bridge portolan after-br-netfilter accept",
			"delete table bridge portolan",
		} {
			t.Run(damage, func(t *testing.T) {
				command(t, "nft", "add", "table", "bridge", "portolan")
				m := open(t)
				t.Cleanup(func() { assert.NoError(t, m.Close()) })
				require.NoError(t, m.Load([]portmap.Network{closed("n1", "plbr1")}, nil))
				require.True(t, portmap.PortsApart())
				command(t, append([]string{"nft"}, strings.Fields(damage)...)...)
				require.False(t, portmap.PortsApart())
				repaired, err := m.Check()
				require.NoError(t, err)
				require.True(t, repaired)
				require.True(t, portmap.PortsApart())
				repaired, err = m.Check()
				require.NoError(t, err)
				require.False(t, repaired)
				require.NoError(t, m.Load(nil, nil))
				require.NotContains(t, bridgeTables(t), "portolan")
			})
		}
	})
}
