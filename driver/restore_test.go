package driver

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/internal/sklookup"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// twoNetworks is the scene of most of the tests here: endpoint 10 publishes on
// network 1, 11 is there beside it, 20 publishes on network 2.
func twoNetworks(t *testing.T) *rig {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, object{dockerBridge + "enable_icc": "false"}))
	r.ok("CreateNetwork", networkOf(2, false, nil))
	r.run(1, 10, 2, true, "/sb1")
	r.run(1, 11, 3, true, "/sb2")
	r.run(2, 20, 2, false, "/sb3")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53)))
	r.ok("ProgramExternalConnectivity", programOf(2, 20, udp("", 54, 53)))
	return r
}

func TestRestoreOfTheLiving(t *testing.T) {
	r := twoNetworks(t)
	nets, eps, pubs := r.store.Networks(), r.store.Endpoints(), r.mapper.Publications()
	port := linkOf(t, "pvd000000a00").Attrs().Index
	r.restart()
	assert.Equal(t, nets, r.store.Networks())
	assert.Equal(t, eps, r.store.Endpoints())
	assert.Equal(t, pubs, r.mapper.Publications())
	assert.Len(t, r.pub.heldBy, 2)
	assert.Equal(t, port, linkOf(t, "pvd000000a00").Attrs().Index, "nothing is made anew")
	r.ok("Leave", endpointOf(1, 10))
	assert.NotContains(t, r.pub.heldBy, "/sb1")
}

func TestRestoreOfTheDead(t *testing.T) {
	r := twoNetworks(t)
	require.NoError(t, netlink.LinkDel(linkOf(t, "pvd000000a00")))
	r.restart()
	ep, ok := r.store.Endpoint(id(10))
	require.True(t, ok)
	assert.False(t, ep.Gone.IsZero())
	assert.Empty(t, ep.Sandbox)
	assert.Empty(t, r.published(10))
	pubs := r.mapper.Publications()
	require.Len(t, pubs, 1)
	assert.Equal(t, id(20), pubs[0].Endpoint)
	require.Len(t, r.pub.gone, 1)
	assert.Equal(t, "53->53/udp", r.pub.gone[0].String(), "its clients are told")
	r.ok("Leave", endpointOf(1, 10))
	assert.Empty(t, r.pub.took()[1:], "its sandbox has nothing to release")
	r.ok("DeleteEndpoint", endpointOf(1, 10))
}

// Bridges that are gone are made again, ports that are alive put on them.
func TestRestoreOfBridges(t *testing.T) {
	r := twoNetworks(t)
	require.NoError(t, netlink.LinkDel(linkOf(t, bridgeOf(1))))
	require.Zero(t, linkOf(t, "pvd000000a00").Attrs().MasterIndex)
	r.restart()
	br := linkOf(t, bridgeOf(1))
	assert.Contains(t, addrsOf(t, br), "10.1.0.1/24")
	assert.Equal(t, "1", sysctl(t, "ipv4/conf/"+bridgeOf(1)+"/route_localnet"))
	port := linkOf(t, "pvd000000a00")
	assert.Equal(t, br.Attrs().Index, port.Attrs().MasterIndex)
	flags, err := netlink.LinkGetProtinfo(port)
	require.NoError(t, err)
	assert.True(t, flags.Hairpin)
	assert.True(t, flags.Isolated)
	assert.Len(t, r.mapper.Publications(), 2)
}

// Localhost is not opened before the rules stand, or if they do not.
func TestRestoreWithoutRules(t *testing.T) {
	r := twoNetworks(t)
	require.NoError(t, netlink.LinkDel(linkOf(t, bridgeOf(1))))
	require.NoError(t, r.store.Close())
	r.open()
	r.mapper.Fail = func(op string, _ portmap.Publication) error {
		if op == "Load" {
			assert.Equal(t, "0", sysctl(t, "ipv4/conf/"+bridgeOf(1)+"/route_localnet"))
			return errors.New("netlink: no")
		}
		return nil
	}
	require.ErrorContains(t, r.Restore(), "restore published ports: netlink: no")
	assert.Equal(t, "0", sysctl(t, "ipv4/conf/"+bridgeOf(1)+"/route_localnet"))
	r.mapper.Fail = nil
	// What they would change is not there: a first network would be the only one.
	for method, body := range map[string]object{"Leave": endpointOf(1, 10), "CreateNetwork": networkOf(3, false, nil)} {
		assert.Contains(t, r.refused(method, body), "could not restore its state")
	}
	assert.Empty(t, r.mapper.Networks())
	r.restart()
	r.ok("Leave", endpointOf(1, 10))
}

// One network's trouble is not another's.
func TestRestoreGoesOn(t *testing.T) {
	r := twoNetworks(t)
	require.NoError(t, netlink.LinkDel(linkOf(t, bridgeOf(1))))
	netnstest.Bridge(t, bridgeOf(1)) // somebody else's now
	r.restart()
	assert.Len(t, r.store.Networks(), 2)
	nets := r.mapper.Networks()
	require.Len(t, nets, 1)
	assert.Equal(t, id(2), nets[0].ID)
	pubs := r.mapper.Publications()
	require.Len(t, pubs, 1)
	assert.Equal(t, id(20), pubs[0].Endpoint)
	ep, _ := r.store.Endpoint(id(10))
	assert.True(t, ep.Gone.IsZero(), "it is alive, and has its port when the network is back")
	assert.Equal(t, []string{"53->53/udp"}, r.published(10))
	_, err := r.Check(true)
	require.ErrorContains(t, err, "rebuild network d00000010000: bridge name "+bridgeOf(1)+" is taken by a bridge interface of this host")
	require.Len(t, r.mapper.Networks(), 1)
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	linkOf(t, bridgeOf(1)) // is still there
	_, err = r.Check(true)
	require.NoError(t, err)
}

// A network that could not be rebuilt at the start is when it can be, with the
// ports of its containers; until then nobody gets their numbers.
func TestRestoreIsTriedAgain(t *testing.T) {
	r := twoNetworks(t)
	pubs := r.mapper.Publications()
	require.NoError(t, netlink.LinkDel(linkOf(t, bridgeOf(1))))
	netnstest.Bridge(t, bridgeOf(1)) // somebody else's now
	r.restart()
	require.Len(t, r.mapper.Publications(), 1)
	require.NoError(t, netlink.LinkDel(linkOf(t, bridgeOf(1))))
	repaired, err := r.Check(true)
	require.NoError(t, err)
	assert.Equal(t, []string{"network d00000010000"}, repaired)
	assert.Equal(t, pubs, r.mapper.Publications())
	assert.Len(t, r.mapper.Networks(), 2)
	assert.Equal(t, linkOf(t, bridgeOf(1)).Attrs().Index, linkOf(t, "pvd000000b00").Attrs().MasterIndex, "of one that publishes nothing, too")
	assert.Equal(t, "1", sysctl(t, "ipv4/conf/"+bridgeOf(1)+"/route_localnet"))
	repaired, err = r.Check(true)
	require.NoError(t, err)
	assert.Empty(t, repaired)
}

// A bridge of ours that cannot be rebuilt does not stand open meanwhile.
func TestRestoreClosesWhatItCannotRebuild(t *testing.T) {
	r := twoNetworks(t)
	require.NoError(t, r.store.Close())
	r.open()
	r.Driver.sys.dir = filepath.Join(t.TempDir(), "nothing")
	require.NoError(t, r.Restore())
	assert.Len(t, r.mapper.Networks(), 2)
	assert.Len(t, r.mapper.Publications(), 1, "network 2 has no IPv6, and needs no settings")
	_, err := r.Check(true)
	require.ErrorContains(t, err, "rebuild network d00000010000: ")
	r.Driver.sys.dir = defaultSysctlDir
	_, err = r.Check(true)
	require.NoError(t, err)
	assert.Len(t, r.mapper.Publications(), 2)
}

// A daemon that was killed leaves records that say so.
func TestRestoreOfHalves(t *testing.T) {
	forwardingOff(t)
	r := twoNetworks(t)
	n, _ := r.store.Network(id(1))
	n.Phase = store.Intent
	require.NoError(t, r.store.PutNetwork(n))
	_, err := r.store.UpdateEndpoint(id(20), func(e *store.Endpoint) { e.Phase = store.Intent })
	require.NoError(t, err)
	r.restart()
	links, err := ourLinks()
	require.NoError(t, err)
	require.Len(t, links, 1)
	assert.Equal(t, bridgeOf(2), links[0].Attrs().Name)
	require.Len(t, r.store.Endpoints(), 1, "the engine may still delete it")
	assert.Equal(t, "1", sysctl(t, "ipv4/ip_forward"))
	assert.Equal(t, "0", sysctl(t, "ipv6/conf/all/forwarding"), "for network 1 alone")
	r.ok("DeleteEndpoint", endpointOf(2, 20))
	r.ok("DeleteNetwork", object{"NetworkID": id(2)})
	r.nothingLeft()
}

// Killed between the making of an interface and its alias.
func TestRestoreWithoutAlias(t *testing.T) {
	r := twoNetworks(t)
	for _, name := range []string{bridgeOf(1), "pvd000000a00"} {
		require.NoError(t, netlink.LinkSetAlias(linkOf(t, name), ""))
	}
	r.restart()
	assert.Equal(t, aliasNetwork+id(1), linkOf(t, bridgeOf(1)).Attrs().Alias)
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.ok("DeleteNetwork", object{"NetworkID": id(2)})
	r.nothingLeft()
	_, err := netlink.LinkByName("pvd000000a00")
	assert.Error(t, err)
}

// A restart of the daemon keeps guard and records; a restart of the machine
// makes them void, as whatever is set now is somebody else's doing.
func TestRestoreOfForwarding(t *testing.T) {
	forwardingOff(t)
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.run(1, 10, 2, false, "/sb")
	r.mapper.Fail = nil
	r.restart()
	got4, got6, _ := r.mapper.Guarded()
	assert.True(t, got4)
	assert.False(t, got6)

	require.NoError(t, netlink.LinkDel(linkOf(t, bridgeOf(1))))
	require.NoError(t, netlink.LinkDel(linkOf(t, "pvd000000a00")))
	netnstest.Sysctl(t, "ipv4/ip_forward", "0")
	// Who holds long ranges was first to look at the list, and may add to it.
	reserved := store.Sysctl{Path: sklookup.ReservedPorts, New: "20000-29999"}
	require.NoError(t, r.store.PutSysctl(reserved))
	r.restart()
	assert.Equal(t, []store.Sysctl{reserved}, r.store.Sysctls())
	require.NoError(t, r.store.DeleteSysctl(reserved.Path))
	got4, _, _ = r.mapper.Guarded()
	assert.False(t, got4)
	assert.Equal(t, "0", sysctl(t, "ipv4/ip_forward"), "the engine may want to turn it on itself")
	r.run(1, 11, 3, false, "/sb")
	assert.Equal(t, "1", sysctl(t, "ipv4/ip_forward"), "it has not")
	got4, _, _ = r.mapper.Guarded()
	assert.True(t, got4)
}

// moveIn does what the engine does after Join.
func (r *rig) moveIn(e int) *netnstest.Host {
	r.t.Helper()
	_, inside := vethNames(id(e))
	c := netnstest.NewHost(r.t)
	require.NoError(r.t, netlink.LinkSetNsFd(linkOf(r.t, inside), c.FD()))
	require.NoError(r.t, c.Do(func() error { return netlink.LinkSetUp(linkOf(r.t, inside)) }))
	return c
}

func TestReap(t *testing.T) {
	r := twoNetworks(t)
	r.moveIn(10)
	r.moveIn(20)
	r.ok("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(12), "Interface": object{"Address": "10.1.0.4/24"}})
	r.ok("Leave", endpointOf(1, 11))
	left := func(after time.Duration) (ids []string) {
		require.NoError(t, r.Reap(time.Now().Add(after)))
		for _, ep := range r.store.Endpoints() {
			ids = append(ids, ep.ID)
		}
		return ids
	}
	assert.Equal(t, []string{id(10), id(11), id(12), id(20)}, left(9*time.Minute))
	assert.Equal(t, []string{id(10), id(11), id(20)}, left(11*time.Minute))
	assert.Equal(t, []string{id(10), id(11), id(20)}, left(23*time.Hour))
	assert.Equal(t, []string{id(10), id(20)}, left(25*time.Hour))
	assert.Len(t, r.mapper.Publications(), 2)
}

// An engine that cannot reach the daemon gives up on Leave: what tells is that
// it has moved the interface out of the container.
func TestReapAbandoned(t *testing.T) {
	r := twoNetworks(t)
	c := r.moveIn(10)
	r.moveIn(20)
	_, inside := vethNames(id(10))
	host, err := netns.Get()
	require.NoError(t, err)
	defer host.Close()
	require.NoError(t, c.Do(func() error { return netlink.LinkSetNsFd(linkOf(t, inside), int(host)) }))

	require.NoError(t, r.Reap(time.Now()))
	assert.Len(t, r.mapper.Publications(), 2, "a start takes its time")
	require.NoError(t, r.Reap(time.Now().Add(time.Minute)))
	assert.Len(t, r.mapper.Publications(), 1)
	ep, ok := r.store.Endpoint(id(10))
	require.True(t, ok)
	assert.False(t, ep.Gone.IsZero())
	_, err = netlink.LinkByName(inside)
	assert.Error(t, err)
	r.ok("Leave", endpointOf(1, 10))
	r.ok("DeleteEndpoint", endpointOf(1, 10))
}

// A start may take long, where volumes are of another host: an interface that
// never was in the container is not one that is back from there.
func TestReapSparesASlowStart(t *testing.T) {
	r := twoNetworks(t)
	for _, e := range []int{10, 11, 20} {
		port, _ := vethNames(id(e))
		was, err := wasUp(linkOf(t, port))
		require.NoError(t, err)
		require.False(t, was, port)
	}
	require.NoError(t, r.Reap(time.Now().Add(9*time.Minute)))
	assert.Len(t, r.mapper.Publications(), 2)
	r.moveIn(10)
	require.NoError(t, r.Reap(time.Now().Add(11*time.Minute)))
	assert.Equal(t, []string{"53->53/udp"}, r.published(10))
	assert.Len(t, r.mapper.Publications(), 1, "nobody waits for ever")
}

// A start that failed while no daemon was there is over when one begins.
func TestRestoreOfWhatNeverStarted(t *testing.T) {
	r := twoNetworks(t)
	_, err := r.store.UpdateEndpoint(id(10), func(e *store.Endpoint) { e.Created = e.Created.Add(-time.Minute) })
	require.NoError(t, err)
	r.restart()
	assert.Empty(t, r.published(10))
	assert.Equal(t, []string{"54->53/udp"}, r.published(20), "this one may still start")
}

// A state that was damaged is set aside. What it knew of stays closed, as if
// internal, and can be removed.
func TestRestoreOfNobody(t *testing.T) {
	r := twoNetworks(t)
	r.moveIn(10)
	require.Equal(t, "1", sysctl(t, "ipv4/conf/"+bridgeOf(1)+"/route_localnet"))
	require.NoError(t, r.store.Close())
	require.NoError(t, os.Truncate(filepath.Join(r.store.Dir(), "state.json"), 300))
	r.open()
	require.NotEmpty(t, r.store.Damaged())
	require.NoError(t, r.Restore())
	require.Empty(t, r.store.Networks())
	nets := r.mapper.Networks()
	require.Len(t, nets, 2)
	for _, n := range nets {
		assert.True(t, n.Internal, n.Bridge)
		assert.True(t, n.Subnet4.IsValid(), n.Bridge)
		assert.Equal(t, "0", sysctl(t, "ipv4/conf/"+n.Bridge+"/route_localnet"))
	}
	assert.Empty(t, r.mapper.Publications())
	stranger := networkOf(1, false, object{optBridgeName: "another0"})
	stranger["NetworkID"] = id(3)
	assert.Contains(t, r.refused("CreateNetwork", stranger), "portolan cleanup")
	for i := range 2 {
		r.ok("DeleteNetwork", object{"NetworkID": id(i + 1)})
	}
	assert.Empty(t, r.mapper.Networks())
	r.nothingLeft()
}

// A sandbox has ended when its file has, as far as one can see.
func TestSandboxGone(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "0123456789ab")
	assert.True(t, sandboxGone(key))
	require.NoError(t, os.WriteFile(key, nil, 0o600))
	assert.False(t, sandboxGone(key))
	assert.False(t, sandboxGone(filepath.Join(dir, "nowhere", "0123456789ab")), "a managed plugin sees none")
	assert.False(t, sandboxGone(filepath.Join(key, "0123456789ab")))
}
