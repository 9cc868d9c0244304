package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
)

// published is what an endpoint's record says, as `portolan ls` prints it.
func (r *rig) published(e int) []string {
	r.t.Helper()
	ep, ok := r.store.Endpoint(id(e))
	require.True(r.t, ok)
	require.Equal(r.t, len(ep.Mappings) > 0, ep.Gateway)
	var all []string
	for _, m := range ep.Mappings {
		all = append(all, m.String())
	}
	return all
}

func TestPublish(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, nil))
	r.run(1, 10, 2, true, "/sb")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53), udp("127.0.0.1", 0, 54)))
	assert.Equal(t, []string{"53->53/udp", "127.0.0.1:40000->54/udp"}, r.published(10))
	ep, _ := r.store.Endpoint(id(10))
	assert.Equal(t, []portmap.ExposedPort{{Proto: portmap.UDP, Port: 53}}, ep.Exposed)
	pubs := r.mapper.Publications()
	require.Len(t, pubs, 1)
	n, _ := r.store.Network(id(1))
	assert.Equal(t, target(n, ep), pubs[0].Target)

	value := r.ok("EndpointOperInfo", endpointOf(1, 10))["Value"]
	b := func(ip string, port int, hostIP string, hostPort int) object {
		return object{"Proto": 17.0, "IP": ip, "Port": float64(port), "HostIP": hostIP, "HostPort": float64(hostPort), "HostPortEnd": float64(hostPort)}
	}
	assert.Equal(t, object{
		keyPortMap: []any{b("10.1.0.2", 53, "0.0.0.0", 53), b("fd00:1::2", 53, "::", 53), b("10.1.0.2", 54, "127.0.0.1", 40000)},
		keyExposed: []any{object{"Proto": 17.0, "Port": 53.0}},
	}, value)

	// The same again, and less.
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53)))
	assert.Equal(t, []string{"53->53/udp"}, r.published(10))
	r.pub.took()
	r.ok("RevokeExternalConnectivity", endpointOf(1, 10))
	assert.Empty(t, r.published(10))
	assert.Equal(t, []string{"unpublish d000000a"}, r.pub.took(), "the reservation stays")
	r.ok("Leave", endpointOf(1, 10))
	assert.Equal(t, []string{"unpublish d000000a", "release /sb"}, r.pub.took())
}

func TestPublishRefused(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.ok("CreateNetwork", object{"NetworkID": id(2), "IPv6Data": []object{{"Pool": "fd00:2::/64", "Gateway": "fd00:2::1"}}})
	r.ok("CreateNetwork", networkOf(3, false, object{optProxyRemote: "true"}))
	r.run(1, 10, 2, false, "/sb1")
	r.ok("CreateEndpoint", object{"NetworkID": id(2), "EndpointID": id(20), "Interface": object{"AddressIPv6": "fd00:2::2/64"}})
	r.ok("Join", object{"NetworkID": id(2), "EndpointID": id(20), "SandboxKey": "/sb2"})
	r.run(3, 30, 2, false, "/sb3")
	for _, tt := range []struct {
		n, e int
		b    object
		want string
	}{
		{1, 10, udp("2001:db8::1", 53, 53), "publish [2001:db8::1]:53:53/udp: the container has no IPv6 address; publish on an address of the other family, give the network IPv6, or create it with -o portolan.proxy_remote=true"},
		{1, 10, udp("::", 53, 53), "has no IPv6 address"},
		{1, 10, udp("::1", 53, 53), ""},
		{1, 10, udp("::ffff:192.0.2.1", 53, 53), ""},
		{2, 20, udp("192.0.2.1", 53, 53), "the container has no IPv4 address"},
		{2, 20, udp("0.0.0.0", 53, 53), "has no IPv4 address"},
		{2, 20, udp("127.0.0.53", 53, 53), ""},
		{3, 30, udp("2001:db8::1", 53, 53), ""},
		{1, 10, object{"Proto": 1, "Port": 53}, "protocol 1 of port 53 cannot be published; tcp, udp and sctp can"},
		{1, 10, object{"Proto": 300, "Port": 53}, "decode port bindings"},
		{1, 10, object{"Proto": 17, "Port": 65536}, "decode port bindings"},
		{1, 10, object{"Proto": 17, "Port": 53, "HostIP": "host"}, "decode port bindings"},
		{1, 99, udp("", 53, 53), "it is not known to Portolan"},
		{9, 10, udp("", 53, 53), "network d00000090000 is not known to Portolan"},
		{3, 10, udp("", 53, 53), "it is not known to Portolan"}, // of another network
	} {
		t.Run(fmt.Sprint(tt.e, tt.b), func(t *testing.T) {
			body := programOf(tt.n, tt.e, tt.b)
			if tt.want != "" {
				assert.Contains(t, r.refused("ProgramExternalConnectivity", body), tt.want)
				return
			}
			r.ok("ProgramExternalConnectivity", body)
			r.ok("RevokeExternalConnectivity", endpointOf(tt.n, tt.e))
		})
	}
	r.ok("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(11), "Interface": object{"Address": "10.1.0.3/24"}})
	assert.Contains(t, r.refused("ProgramExternalConnectivity", programOf(1, 11, udp("", 53, 53))), "it has not joined")
	assert.Empty(t, r.mapper.Publications())
}

// After a failure the record says what is still published.
func TestPublishUndone(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.run(1, 10, 2, false, "/sb")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53)))
	r.pub.fail = fmt.Errorf("udp port 54: %w", portmap.ErrPortInUse)
	assert.Equal(t, "publish ports of endpoint d000000a0000: udp port 54: host port in use",
		r.refused("ProgramExternalConnectivity", programOf(1, 10, udp("", 54, 53))))
	assert.Equal(t, []string{"53->53/udp"}, r.published(10))
}

func TestHostBinding(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, object{dockerBridge + "host_binding_ipv4": "127.0.0.1"}))
	r.run(1, 10, 2, true, "/sb")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53), udp("::1", 54, 53), udp("0.0.0.0", 55, 53)))
	assert.Equal(t, []string{"127.0.0.1:53->53/udp", "[::1]:54->53/udp", "0.0.0.0:55->53/udp"}, r.published(10))
}

func TestInternalPublishesNothing(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, object{keyInternal: true}))
	r.run(1, 10, 2, false, "/sb")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53)))
	assert.Empty(t, r.published(10))
	assert.Empty(t, r.pub.took())
	ep, _ := r.store.Endpoint(id(10))
	assert.Len(t, ep.Exposed, 1)
}

func TestRoutedTarget(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, object{dockerBridge + "gateway_mode_ipv6": "routed"}))
	r.run(1, 10, 2, true, "/sb")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53)))
	pubs := r.mapper.Publications()
	require.Len(t, pubs, 1)
	assert.False(t, pubs[0].Routed4)
	assert.True(t, pubs[0].Routed6)
	bindings := r.ok("EndpointOperInfo", endpointOf(1, 10))["Value"].(object)[keyPortMap]
	require.Len(t, bindings, 1, "nothing of the host's is taken for IPv6")
}

// The gateway of a sandbox moves from network 1 to network 2, with and without
// a Revoke, in the order that both engines keep to; the port stays the same.
func TestGatewayMoves(t *testing.T) {
	for _, revoke := range []bool{true, false} {
		t.Run(fmt.Sprintf("revoke=%t", revoke), func(t *testing.T) {
			r := newRig(t)
			r.ok("CreateNetwork", networkOf(1, false, nil))
			r.ok("CreateNetwork", networkOf(2, false, nil))
			r.run(1, 10, 2, false, "/sb")
			r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 0, 53)))
			r.run(2, 20, 2, false, "/sb")
			if revoke {
				r.ok("RevokeExternalConnectivity", endpointOf(1, 10))
				r.ok("Leave", endpointOf(1, 10))
			}
			r.ok("ProgramExternalConnectivity", programOf(2, 20, udp("", 0, 53)))
			assert.Equal(t, []string{"40000->53/udp"}, r.published(20))
			assert.Empty(t, r.published(10))
			if !revoke {
				r.ok("Leave", endpointOf(1, 10))
			}
			r.ok("DeleteEndpoint", endpointOf(1, 10))
			assert.Equal(t, []string{"40000->53/udp"}, r.published(20))
			pubs := r.mapper.Publications()
			require.Len(t, pubs, 1)
			assert.Equal(t, id(20), pubs[0].Endpoint)
			assert.NotContains(t, r.pub.took(), "release /sb")

			// docker stop.
			r.ok("RevokeExternalConnectivity", endpointOf(2, 20))
			r.ok("Leave", endpointOf(2, 20))
			assert.Contains(t, r.pub.took(), "release /sb")
			r.ok("DeleteEndpoint", endpointOf(2, 20))
			assert.NotContains(t, r.pub.took(), "release /sb")
			assert.Empty(t, r.pub.heldBy)
		})
	}
}

// What the sandbox keeps while none of its endpoints publishes is on record, by
// whichever of them is there, until one publishes again.
func TestParkedPortsAreOnRecord(t *testing.T) {
	r := newRig(t)
	parked := func(e int) (ports []string) {
		ep, _ := r.store.Endpoint(id(e))
		for _, m := range ep.Parked {
			ports = append(ports, m.String())
		}
		return ports
	}
	const port = "40000->53/udp"
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.ok("CreateNetwork", networkOf(2, false, nil))
	r.run(1, 10, 2, false, "/sb")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 0, 53)))
	r.run(2, 20, 2, false, "/sb")
	r.ok("RevokeExternalConnectivity", endpointOf(1, 10))
	assert.Empty(t, r.published(10))
	assert.Equal(t, []string{port}, parked(10))
	r.ok("RevokeExternalConnectivity", endpointOf(1, 10))
	assert.Equal(t, []string{port}, parked(10), "again")
	r.pub.fail = errors.New("no")
	r.refused("ProgramExternalConnectivity", programOf(1, 10, udp("", 0, 53)))
	r.pub.fail = nil
	assert.Equal(t, []string{port}, parked(10), "it failed")
	r.ok("Leave", endpointOf(1, 10))
	assert.Empty(t, parked(10))
	assert.Equal(t, []string{port}, parked(20))
	r.ok("ProgramExternalConnectivity", programOf(2, 20, udp("", 0, 53)))
	assert.Equal(t, []string{port}, r.published(20))
	assert.Empty(t, parked(20))

	// An internal network is no way out, and what it is asked to publish for
	// nobody takes nothing from the record.
	internal := networkOf(3, false, object{keyInternal: true})
	r.ok("CreateNetwork", internal)
	r.run(3, 30, 2, false, "/sb2")
	_, err := r.store.UpdateEndpoint(id(30), func(e *store.Endpoint) { e.Parked = portmaptest.Mappings(t, port) })
	require.NoError(t, err)
	r.ok("ProgramExternalConnectivity", programOf(3, 30, udp("", 0, 53)))
	assert.Equal(t, []string{port}, parked(30))
	r.ok("Leave", endpointOf(3, 30))

	// An endpoint that joins inherits nothing that is published.
	r.run(1, 11, 3, false, "/sb")
	r.ok("RevokeExternalConnectivity", endpointOf(2, 20))
	r.ok("ProgramExternalConnectivity", programOf(1, 11, udp("", 0, 53)))
	assert.Empty(t, parked(20))
	r.ok("Leave", endpointOf(2, 20))
	assert.Empty(t, parked(11))
	r.ok("Leave", endpointOf(1, 11))
	assert.Empty(t, parked(11))
	assert.Empty(t, r.pub.heldBy)
}

// DeleteEndpoint alone does all of it.
func TestDeleteEndpointImpliesLeave(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.run(1, 10, 2, false, "/sb")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53)))
	r.ok("DeleteEndpoint", endpointOf(1, 10))
	assert.Empty(t, r.mapper.Publications())
	assert.Empty(t, r.pub.heldBy)
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.nothingLeft()
}

// Trouble with the rules keeps nothing else from being taken down.
func TestLeaveGoesOn(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.run(1, 10, 2, false, "/sb")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53)))
	r.mapper.Fail = func(op string, _ portmap.Publication) error {
		if op == "Unmap" {
			return errors.New("netlink: no")
		}
		return nil
	}
	assert.Contains(t, r.refused("Leave", endpointOf(1, 10)), "leave endpoint d000000a0000: netlink: no")
	r.mapper.Fail = nil
	links, err := ourLinks()
	require.NoError(t, err)
	assert.Len(t, links, 1)
	assert.Empty(t, r.pub.heldBy)
}

func TestTenThousandPorts(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.run(1, 10, 2, false, "/sb")
	var bs []object
	for _, i := range rand.Perm(10000) {
		bs = append(bs, udp("", 10000+i, 10000+i))
	}
	r.ok("ProgramExternalConnectivity", programOf(1, 10, bs...))
	assert.Equal(t, []string{"10000-19999->10000-19999/udp"}, r.published(10))
}

func TestListAndOwner(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, nil))
	r.run(1, 10, 2, true, "/sb")
	r.run(1, 11, 3, false, "/gone")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53)))
	r.ok("Leave", endpointOf(1, 11))
	status, _ := r.post("/Portolan.SetOwner", SetOwnerRequest{id(10), "4f5e", "web"})
	require.Equal(t, http.StatusOK, status)
	_, answer := r.post("/Portolan.SetOwner", SetOwnerRequest{id(99), "4f5e", "web"})
	assert.Equal(t, "set the owner of endpoint d00000630000: it is not known to Portolan", answer["Err"])

	_, answer = r.post("/Portolan.List", "")
	b, err := json.Marshal(answer)
	require.NoError(t, err)
	var list ListResponse
	require.NoError(t, json.Unmarshal(b, &list))
	require.Len(t, list.Endpoints, 1, "without tombstones")
	got := list.Endpoints[0]
	assert.Equal(t, id(10), got.ID)
	assert.Equal(t, bridgeOf(1), got.Bridge)
	assert.Equal(t, "/sb", got.Sandbox)
	assert.Equal(t, "10.1.0.2", got.IPv4.String())
	assert.Equal(t, "fd00:1::2", got.IPv6.String())
	assert.Equal(t, &store.Owner{ContainerID: "4f5e", ContainerName: "web"}, got.Owner)
	assert.True(t, got.Gateway)
	require.Len(t, got.Mappings, 1)
	assert.Equal(t, "53->53/udp", got.Mappings[0].String())
	assert.Equal(t, got.IPv4, got.Target.IPv4)
}

// What a container exposes is known without a call to publish: not every
// endpoint gets one.
func TestExposedWithoutPublishing(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, object{keyInternal: true}))
	exposed := object{keyExposed: []object{{"Proto": 6, "Port": 443}, {"Proto": 6, "Port": 80}}}
	r.ok("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(10), "Interface": object{"Address": "10.1.0.2/24"}, "Options": exposed})
	want := []portmap.ExposedPort{{Proto: portmap.TCP, Port: 80}, {Proto: portmap.TCP, Port: 443}}
	ep, _ := r.store.Endpoint(id(10))
	assert.Equal(t, want, ep.Exposed)

	r.ok("Join", object{"NetworkID": id(1), "EndpointID": id(10), "SandboxKey": "/sb1"})
	r.ok("ProgramExternalConnectivity", object{"NetworkID": id(1), "EndpointID": id(10), "Options": object{keyPortMap: []object{}}})
	ep, _ = r.store.Endpoint(id(10))
	assert.Equal(t, want, ep.Exposed, "a call that does not tell")
	assert.Contains(t, r.refused("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(11),
		"Interface": object{"Address": "10.1.0.3/24"}, "Options": object{keyExposed: "80"}}), "decode exposed ports")
}
