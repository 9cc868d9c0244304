package driver

import (
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/internal/store"
)

func TestCreateEndpoint(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, nil))
	create := func(e int, iface object) object {
		return object{"NetworkID": id(1), "EndpointID": id(e), "Interface": iface}
	}
	// Only what was empty comes back.
	assert.Equal(t, object{"Interface": object{"MacAddress": "02:42:0a:01:00:02"}}, r.ok("CreateEndpoint", create(10, object{"Address": "10.1.0.2/24", "AddressIPv6": "fd00:1::2/64"})))
	assert.Equal(t, object{"Interface": object{}}, r.ok("CreateEndpoint", create(11, object{"Address": "10.1.0.3/24", "MacAddress": "02:00:00:00:00:07"})))
	assert.Equal(t, object{"Interface": object{"MacAddress": "02:42:00:0a:00:0b"}}, r.ok("CreateEndpoint", create(12, object{"AddressIPv6": "fd00:1::a:b/64"})))
	ep, _ := r.store.Endpoint(id(11))
	assert.Equal(t, "02:00:00:00:00:07", ep.MAC)
	assert.Equal(t, store.Intent, ep.Phase)
	links, err := ourLinks()
	require.NoError(t, err)
	require.Len(t, links, 1, "nothing but the bridge")

	for _, tt := range []struct {
		in   object
		want string
	}{
		{create(10, object{"Address": "10.1.0.9/24"}), "it is there already"},
		{create(13, object{"Address": "10.2.0.2/24"}), "address 10.2.0.2 is not in the network's pools"},
		{create(13, object{"Address": "10.1.0.2/24", "AddressIPv6": "fd00:9::2/64"}), "address fd00:9::2 is not in the network's pools"},
		{create(13, object{"Address": "10.1.0.1/24"}), "address 10.1.0.1 is the network's gateway"},
		{create(13, object{"Address": "10.1.0.2"}), `"10.1.0.2" is not an address in CIDR notation`},
		{create(13, object{}), "no address"},
		{create(13, nil), "no address"},
		{create(13, object{"Address": "10.1.0.2/24", "MacAddress": "01:00:5e:00:00:01"}), "is not a MAC address"},
		{create(13, object{"Address": "10.1.0.2/24", "MacAddress": "x"}), "is not a MAC address"},
		{object{"NetworkID": id(2), "EndpointID": id(13)}, "network d00000020000 is not known to Portolan"},
		{object{"NetworkID": id(1), "EndpointID": "short"}, `"short" is not an endpoint ID`},
		{object{"NetworkID": id(1), "EndpointID": id(13), "Options": object{"portolan.x": "1", "dns": 1}}, `option "portolan.x" is not known here`},
	} {
		assert.Contains(t, r.refused("CreateEndpoint", tt.in), tt.want)
	}
	require.Len(t, r.store.Endpoints(), 3)
}

func TestPort(t *testing.T) {
	for _, icc := range []string{"true", "false"} {
		t.Run("icc="+icc, func(t *testing.T) {
			r := newRig(t)
			r.ok("CreateNetwork", networkOf(1, true, object{"com.docker.network.driver.mtu": "1400", dockerBridge + "enable_icc": icc, "com.docker.network.container_iface_prefix": "lan"}))
			r.ok("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(10), "Interface": object{"Address": "10.1.0.2/24", "AddressIPv6": "fd00:1::2/64"}})
			answer := r.ok("Join", object{"NetworkID": id(1), "EndpointID": id(10), "SandboxKey": "/sb"})
			assert.Equal(t, object{
				"InterfaceName":         object{"SrcName": "pcd000000a00", "DstPrefix": "lan"},
				"Gateway":               "10.1.0.1",
				"GatewayIPv6":           "fd00:1::1",
				"StaticRoutes":          nil,
				"DisableGatewayService": false,
			}, answer)

			port, inside := linkOf(t, "pvd000000a00"), linkOf(t, "pcd000000a00")
			assert.Equal(t, "portolan endpoint "+id(10), port.Attrs().Alias)
			assert.Equal(t, linkOf(t, bridgeOf(1)).Attrs().Index, port.Attrs().MasterIndex)
			assert.NotZero(t, port.Attrs().Flags&net.FlagUp)
			assert.Equal(t, 1400, port.Attrs().MTU)
			assert.Equal(t, 1400, inside.Attrs().MTU)
			assert.Equal(t, "02:42:0a:01:00:02", inside.Attrs().HardwareAddr.String())
			flags, err := netlink.LinkGetProtinfo(port)
			require.NoError(t, err)
			assert.True(t, flags.Hairpin)
			assert.Equal(t, icc == "false", flags.Isolated)
			addrs, err := netlink.AddrList(port, netlink.FAMILY_V6)
			require.NoError(t, err)
			assert.Empty(t, addrs, "no link-local address")

			ep, _ := r.store.Endpoint(id(10))
			assert.Equal(t, store.Done, ep.Phase)
			assert.Equal(t, "/sb", ep.Sandbox)
			assert.Equal(t, "pvd000000a00", ep.Veth)
			for range 2 { // engines say it twice
				r.ok("Leave", endpointOf(1, 10))
				links, err := ourLinks()
				require.NoError(t, err)
				require.Len(t, links, 1)
			}
			for range 2 {
				r.ok("DeleteEndpoint", endpointOf(1, 10))
			}
			r.ok("DeleteNetwork", object{"NetworkID": id(1)})
			r.nothingLeft()
		})
	}
}

func TestJoinGateways(t *testing.T) {
	for _, tt := range []struct {
		name             string
		network          object
		ipv6             bool // of the endpoint
		gateway, gatewa6 string
		off              bool
	}{
		{"both", networkOf(1, true, nil), true, "10.1.0.1", "fd00:1::1", false},
		{"an endpoint without IPv6", networkOf(1, true, nil), false, "10.1.0.1", "", false},
		{"internal", networkOf(1, true, object{keyInternal: true}), true, "", "", true},
		{"isolated", networkOf(1, true, object{keyInternal: true, dockerBridge + "gateway_mode_ipv4": "isolated"}), true, "", "", true},
		{"inhibited: somebody else's router", networkOf(1, false, object{dockerBridge + "inhibit_ipv4": "true"}), false, "10.1.0.1", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.ok("CreateNetwork", tt.network)
			address := object{"Address": "10.1.0.2/24"}
			if tt.ipv6 {
				address["AddressIPv6"] = "fd00:1::2/64"
			}
			r.ok("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(10), "Interface": address})
			answer := r.ok("Join", object{"NetworkID": id(1), "EndpointID": id(10), "SandboxKey": "/sb"})
			assert.Equal(t, tt.gateway, answer["Gateway"])
			assert.Equal(t, tt.gatewa6, answer["GatewayIPv6"])
			assert.Equal(t, tt.off, answer["DisableGatewayService"])
		})
	}
}

// The answer to a Join can be lost; the interface has not been moved then.
func TestJoinTwice(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.run(1, 10, 2, false, "/sb")
	again := object{"NetworkID": id(1), "EndpointID": id(10), "SandboxKey": "/sb"}
	r.ok("Join", again)
	linkOf(t, "pcd000000a00")
	again["SandboxKey"] = "/other"
	assert.Contains(t, r.refused("Join", again), "it has joined /sb")
	linkOf(t, "pcd000000a00")
}

func TestJoinUndone(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	join := object{"NetworkID": id(1), "EndpointID": id(10), "SandboxKey": "/sb"}
	assert.Contains(t, r.refused("Join", join), "it is not known to Portolan")
	r.ok("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(10), "Interface": object{"Address": "10.1.0.2/24"}})

	la := netlink.NewLinkAttrs()
	la.Name = "pcd000000a00" // in the way
	require.NoError(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la}))
	assert.Contains(t, r.refused("Join", join), "make veth pair pvd000000a00")
	require.NoError(t, netlink.LinkDel(linkOf(t, "pcd000000a00")))

	require.NoError(t, netlink.LinkDel(linkOf(t, bridgeOf(1))))
	assert.Contains(t, r.refused("Join", join), "its bridge is missing; restart the Portolan daemon")
	links, err := ourLinks()
	require.NoError(t, err)
	require.Empty(t, links)
	ep, _ := r.store.Endpoint(id(10))
	assert.Equal(t, store.Intent, ep.Phase)
	assert.Empty(t, ep.Sandbox)

	r.restart()
	r.ok("Join", join)
}

// The host forgets the MAC address of whoever had the address before.
func TestNeighboursForgotten(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, nil))
	br := linkOf(t, bridgeOf(1))
	remember := func() {
		for _, ip := range []string{"10.1.0.2", "fd00:1::2"} {
			require.NoError(t, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: br.Attrs().Index, IP: net.ParseIP(ip), State: netlink.NUD_PERMANENT, // a bridge without a carrier forgets the others
				HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9},
			}))
		}
	}
	known := func() (addrs []string) {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := netlink.NeighList(br.Attrs().Index, family)
			require.NoError(t, err)
			for _, n := range list {
				if n.State&netlink.NUD_PERMANENT != 0 {
					addrs = append(addrs, n.IP.String())
				}
			}
		}
		return addrs
	}
	remember()
	require.ElementsMatch(t, []string{"10.1.0.2", "fd00:1::2"}, known())
	r.run(1, 10, 2, true, "/sb")
	require.Empty(t, known(), "after Join")
	remember()
	r.ok("Leave", endpointOf(1, 10))
	require.Empty(t, known(), "after Leave")
}

// A real packet: the container reaches its gateway.
func TestContainerReachesGateway(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, nil))
	r.run(1, 10, 2, true, "/sb")
	c := netnstest.NewHost(t)
	require.NoError(t, netlink.LinkSetNsFd(linkOf(t, "pcd000000a00"), c.FD()))
	ln, err := net.Listen("tcp", "10.1.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	require.NoError(t, c.Do(func() error {
		l, err := netlink.LinkByName("pcd000000a00")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr("10.1.0.2/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	}))
	require.NoError(t, c.Do(func() error {
		hangUp, err := dialTCP(ln.Addr().(*net.TCPAddr))
		if err != nil {
			return err
		}
		return hangUp()
	}))
	r.ok("Leave", endpointOf(1, 10))
	require.Error(t, c.Do(func() error {
		_, err := netlink.LinkByName("pcd000000a00")
		return err
	}), "the other end goes with it")
}

// Twenty containers start, publish and stop at once, on two networks.
func TestManyAtOnce(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, nil))
	r.ok("CreateNetwork", networkOf(2, false, object{dockerBridge + "enable_icc": "false"}))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			n, e := 1+i%2, 100+i
			r.run(n, e, 10+i, n == 1, fmt.Sprintf("/sb%d", i))
			r.ok("ProgramExternalConnectivity", programOf(n, e, udp("", 0, 53), udp("", 20000+i, 54)))
			r.ok("EndpointOperInfo", endpointOf(n, e))
			r.post("/Portolan.List", "")
			r.post("/Portolan.SetOwner", object{"EndpointID": id(e), "ContainerID": "c"})
			if i%3 != 0 {
				r.ok("RevokeExternalConnectivity", endpointOf(n, e))
				r.ok("Leave", endpointOf(n, e))
				r.ok("DeleteEndpoint", endpointOf(n, e))
			}
		})
	}
	wg.Wait()
	assert.Len(t, r.mapper.Publications(), 7)
	assert.Len(t, r.pub.heldBy, 7)
	wg.Go(func() { r.ok("DeleteNetwork", object{"NetworkID": id(1)}) })
	wg.Go(func() { r.ok("DeleteNetwork", object{"NetworkID": id(2)}) })
	wg.Wait()
	r.nothingLeft()
}
