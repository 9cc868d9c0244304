package driver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/portmap"
)

// testdata/state-schema1.json is what a daemon of schema 1 wrote: a network, and
// a container that publishes a port, a range and an ephemeral port. Every later
// daemon takes it up. Once a schema is released its file must not change.
func TestStateOfSchema1(t *testing.T) {
	file := filepath.Join("testdata", "state-schema1.json")
	r := &rig{t: t, dir: t.TempDir()}
	golden, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(r.dir, "state.json"), golden, 0o600))
	r.open()
	t.Cleanup(func() {
		assert.NoError(t, Cleanup(nil, "", r.store.Sysctls()))
		assert.NoError(t, r.store.Close())
	})
	pub := portmap.NewPublisher(portmap.PublisherConfig{Mapper: r.mapper})
	r.Driver.pub = pub
	t.Cleanup(func() { assert.NoError(t, pub.Close()) })
	// The container runs: its end of the pair is not where Join left it.
	port, _ := vethNames(id(10))
	veth := netlink.NewVeth(netlink.NewLinkAttrs())
	veth.Name, veth.PeerName = port, "inside"
	require.NoError(t, netlink.LinkAdd(veth))
	require.NoError(t, netlink.LinkSetAlias(veth, aliasEndpoint+id(10)))

	require.NoError(t, r.Restore())
	assert.Empty(t, r.store.Damaged())
	linkOf(t, bridgeOf(1))
	assert.Len(t, r.mapper.Networks(), 1)
	assert.Equal(t, []string{"5353->53/udp", "6000-6009->7000-7009/udp", "33000->54/udp"}, r.published(10))
	pubs := r.mapper.Publications()
	require.Len(t, pubs, 1)
	assert.Equal(t, "10.1.0.2", pubs[0].IPv4.String())
	assert.Equal(t, "fd00:1::2", pubs[0].IPv6.String())
}
