package driver

import (
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/portmap"
)

// With the real Publisher: a port is held from Program to the last Leave, over
// a move, a restart and a conflict.
func TestRealPublisher(t *testing.T) {
	r := newRig(t)
	var pub *portmap.Publisher
	wire := func() {
		pub = portmap.NewPublisher(portmap.PublisherConfig{Mapper: r.mapper})
		r.Driver.pub = pub
	}
	wire()
	t.Cleanup(func() { assert.NoError(t, pub.Close()) })
	free := func() bool {
		c, err := net.ListenPacket("udp4", "0.0.0.0:5353")
		if err == nil {
			require.NoError(t, c.Close())
		}
		return err == nil
	}
	r.ok("CreateNetwork", networkOf(1, true, nil))
	r.ok("CreateNetwork", networkOf(2, false, nil))
	r.run(1, 10, 2, true, "/sb1")
	r.run(1, 11, 3, true, "/sb2")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 5353, 53)))
	assert.Equal(t, []string{"5353->53/udp"}, r.published(10))
	assert.False(t, free())

	text := r.refused("ProgramExternalConnectivity", programOf(1, 11, udp("", 5353, 53)))
	assert.Contains(t, text, "publish ports of endpoint d000000b0000: ")
	assert.Contains(t, text, "endpoint d000000a0000")
	assert.Empty(t, r.published(11))

	require.NoError(t, pub.Close())
	require.NoError(t, r.store.Close())
	r.open()
	wire()
	require.NoError(t, r.Restore())
	assert.False(t, free())
	assert.Len(t, r.mapper.Publications(), 1)

	r.run(2, 20, 2, false, "/sb1")
	r.ok("RevokeExternalConnectivity", endpointOf(1, 10))
	r.ok("Leave", endpointOf(1, 10))
	assert.True(t, free(), "another driver may need it")
	r.run(1, 12, 4, true, "/sb9")
	r.refused("ProgramExternalConnectivity", programOf(1, 12, udp("", 5353, 53)))
	r.ok("Leave", endpointOf(1, 12))
	r.ok("ProgramExternalConnectivity", programOf(2, 20, udp("", 5353, 53)))
	r.ok("DeleteEndpoint", endpointOf(1, 10))
	assert.Equal(t, []string{"5353->53/udp"}, r.published(20))
	assert.False(t, free())
	r.ok("Leave", endpointOf(2, 20))
	assert.True(t, free())
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.ok("DeleteNetwork", object{"NetworkID": id(2)})
	r.nothingLeft()
}

// A container that died with the engine is never heard of again; whoever asks
// for its port gets it.
func TestPortOfTheDead(t *testing.T) {
	r := newRig(t)
	pub := portmap.NewPublisher(portmap.PublisherConfig{Mapper: r.mapper})
	r.Driver.pub = pub
	t.Cleanup(func() { assert.NoError(t, pub.Close()) })
	r.ok("CreateNetwork", networkOf(1, true, nil))
	r.run(1, 10, 2, true, "/sb1")
	r.run(1, 11, 3, true, "/sb2")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 5353, 53)))
	r.refused("ProgramExternalConnectivity", programOf(1, 11, udp("", 5353, 53)))
	require.NoError(t, netlink.LinkDel(linkOf(t, "pvd000000a00")))
	r.ok("ProgramExternalConnectivity", programOf(1, 11, udp("", 5353, 53)))
	assert.Empty(t, r.published(10))
	assert.Equal(t, []string{"5353->53/udp"}, r.published(11))
	r.ok("DeleteEndpoint", endpointOf(1, 10))
	assert.Equal(t, []string{"5353->53/udp"}, r.published(11))
}

// Of those who ask for it at the same time one gets it.
func TestPortOfTheDeadIsForOne(t *testing.T) {
	r := newRig(t)
	pub := portmap.NewPublisher(portmap.PublisherConfig{Mapper: r.mapper})
	r.Driver.pub = pub
	t.Cleanup(func() { assert.NoError(t, pub.Close()) })
	r.ok("CreateNetwork", networkOf(1, true, nil))
	r.run(1, 10, 2, true, "/sb0")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 5353, 53)))
	const heirs = 8
	for i := range heirs {
		r.run(1, 20+i, 20+i, true, fmt.Sprintf("/sb%d", 20+i))
	}
	require.NoError(t, netlink.LinkDel(linkOf(t, "pvd000000a00")))

	var wg sync.WaitGroup
	answers := make([]map[string]any, heirs)
	for i := range heirs {
		wg.Go(func() {
			_, answers[i] = r.post("/NetworkDriver.ProgramExternalConnectivity", programOf(1, 20+i, udp("", 5353, 53)))
		})
	}
	wg.Wait()
	served := 0
	for i, answer := range answers {
		if answer["Err"] == nil {
			served++
			assert.Equal(t, []string{"5353->53/udp"}, r.published(20+i))
		}
	}
	require.Equal(t, 1, served)
	for i, answer := range answers {
		if answer["Err"] != nil {
			assert.Contains(t, answer["Err"], "udp port 5353 is in use by ")
			assert.Empty(t, r.published(20+i))
		}
	}
}

func TestHostBindingOfAnotherHost(t *testing.T) {
	r := newRig(t)
	pub := portmap.NewPublisher(portmap.PublisherConfig{Mapper: r.mapper})
	r.Driver.pub = pub
	t.Cleanup(func() { assert.NoError(t, pub.Close()) })
	r.ok("CreateNetwork", networkOf(1, false, object{optHostBinding: "192.0.2.99"}))
	r.run(1, 10, 2, false, "/sb1")
	text := r.refused("ProgramExternalConnectivity", programOf(1, 10, udp("", 5353, 53)))
	assert.Contains(t, text, "192.0.2.99 is not an address of this host")
	assert.Contains(t, text, "-o "+optHostBinding)
}
