package driver

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

func sysctl(t testing.TB, path string) string {
	t.Helper()
	v, err := sysctls{defaultSysctlDir}.read(path)
	require.NoError(t, err)
	return v
}

// addrsOf are the addresses of an interface but for link-local ones.
func addrsOf(t testing.TB, l netlink.Link) map[string]int {
	t.Helper()
	list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	require.NoError(t, err)
	addrs := map[string]int{}
	for _, a := range list {
		if !a.IP.IsLinkLocalUnicast() {
			addrs[a.IPNet.String()] = a.Flags
		}
	}
	return addrs
}

func TestBridge(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, object{"com.docker.network.driver.mtu": "1400", dockerBridge + "name": "br.plan"}))
	br := linkOf(t, "br.plan").Attrs()
	assert.Equal(t, "portolan network "+id(1), br.Alias)
	assert.Equal(t, 1400, br.MTU)
	assert.Equal(t, "02:42:0a:01:00:01", br.HardwareAddr.String())
	assert.NotZero(t, br.Flags&net.FlagUp)
	addrs := addrsOf(t, linkOf(t, "br.plan"))
	require.Len(t, addrs, 2)
	assert.Contains(t, addrs, "10.1.0.1/24")
	require.Contains(t, addrs, "fd00:1::1/64")
	assert.NotZero(t, addrs["fd00:1::1/64"]&unix.IFA_F_NODAD)
	assert.Zero(t, addrs["fd00:1::1/64"]&unix.IFA_F_TENTATIVE)
	assert.Equal(t, "0", sysctl(t, "ipv6/conf/br.plan/disable_ipv6"))
	assert.Equal(t, "0", sysctl(t, "ipv6/conf/br.plan/accept_dad"))
	assert.Equal(t, "0", sysctl(t, "ipv6/conf/br.plan/accept_ra"))
	assert.Equal(t, "1", sysctl(t, "ipv4/conf/br.plan/route_localnet"))

	n, ok := r.store.Network(id(1))
	require.True(t, ok)
	assert.Equal(t, store.Done, n.Phase)
	assert.Equal(t, []portmap.Network{n.Network}, r.mapper.Networks())

	// A port comes and goes; the bridge keeps its MAC address.
	r.run(1, 10, 2, true, "/sb")
	assert.Equal(t, br.HardwareAddr, linkOf(t, "br.plan").Attrs().HardwareAddr)
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.nothingLeft()
	assert.Contains(t, r.pub.took(), "release /sb")
}

func TestBridgeWithoutIPv6(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	assert.Equal(t, "1", sysctl(t, "ipv6/conf/"+bridgeOf(1)+"/disable_ipv6"))
	r.ok("CreateNetwork", networkOf(2, false, object{"com.docker.network.driver.mtu": "1000"}))
	r.run(2, 10, 2, false, "/sb")
	assert.Equal(t, 1000, linkOf(t, "pcd000000a00").Attrs().MTU)
}

// What only some kinds of networks have.
func TestBridgeByMode(t *testing.T) {
	const mode4, mode6 = dockerBridge + "gateway_mode_ipv4", dockerBridge + "gateway_mode_ipv6"
	for _, tt := range []struct {
		name     string
		options  object
		localnet string
		addrs    []string
	}{
		{"nat", object{}, "1", []string{"10.1.0.1/24", "fd00:1::1/64"}},
		{"unprotected", object{mode4: "nat-unprotected"}, "1", []string{"10.1.0.1/24", "fd00:1::1/64"}},
		{"routed", object{mode4: "routed"}, "0", []string{"10.1.0.1/24", "fd00:1::1/64"}},
		{"internal", object{keyInternal: true}, "0", []string{"10.1.0.1/24", "fd00:1::1/64"}},
		{"isolated", object{keyInternal: true, mode4: "isolated"}, "0", []string{"fd00:1::1/64"}},
		{"isolated twice", object{keyInternal: true, mode4: "isolated", mode6: "isolated"}, "0", nil},
		{"inhibited", object{dockerBridge + "inhibit_ipv4": "true"}, "0", []string{"fd00:1::1/64"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.ok("CreateNetwork", networkOf(1, true, tt.options))
			br := linkOf(t, bridgeOf(1))
			assert.Equal(t, tt.localnet, sysctl(t, "ipv4/conf/"+bridgeOf(1)+"/route_localnet"))
			addrs := addrsOf(t, br)
			assert.Len(t, addrs, len(tt.addrs))
			for _, a := range tt.addrs {
				assert.Contains(t, addrs, a)
			}
			assert.Equal(t, byte(2), br.Attrs().HardwareAddr[0]&3, "locally administered, not a group")
		})
	}
}

// Each refusal leaves nothing behind.
func TestCreateNetworkRefused(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, object{dockerBridge + "name": "br-one"}))
	netnstest.Bridge(t, "lan0", "10.3.0.77/24", "fd00:4::7/64")
	for _, tt := range []struct {
		name string
		in   object
		want string
	}{
		{"name of another network", networkOf(2, false, object{dockerBridge + "name": "br-one"}), "bridge name br-one is taken by network d00000010000"},
		{"name of the host's", networkOf(2, false, object{dockerBridge + "name": "lan0"}), "bridge name lan0 is taken by a bridge interface of this host; choose another with -o com.docker.network.bridge.name=NAME"},
		{"name of lo", networkOf(2, false, object{dockerBridge + "name": "lo"}), "bridge name lo is taken by a device interface"},
		{"host address in the pool", networkOf(3, false, nil), "pool 10.3.0.0/24 contains 10.3.0.77, an address of this host (interface lan0); choose another with --subnet"},
		{"host IPv6 address in the pool", networkOf(4, true, nil), "pool fd00:4::/64 contains fd00:4::7"},
		{"overlap", object{"NetworkID": id(5), "IPv4Data": []object{{"Pool": "10.1.0.128/25", "Gateway": "10.1.0.129"}}}, "pool 10.1.0.128/25 overlaps 10.1.0.0/24 of network d00000010000"},
		{"overlap of IPv6", object{"NetworkID": id(5), "IPv6Data": []object{{"Pool": "fd00::/16", "Gateway": "fd00::1"}}}, "pool fd00::/16 overlaps fd00:1::/64"},
		{"other settings", networkOf(1, false, object{dockerBridge + "name": "br-one"}), "it is there already, with other settings"},
		{"option", networkOf(2, false, object{"mtu": "1"}), "create network d00000020000: option \"mtu\" is not known; did you mean"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			assert.Contains(t, r.refused("CreateNetwork", tt.in), tt.want)
		})
	}
	require.Len(t, r.store.Networks(), 1)
	links, err := ourLinks()
	require.NoError(t, err)
	require.Len(t, links, 1)
	r.ok("CreateNetwork", networkOf(1, true, object{dockerBridge + "name": "br-one"})) // the same again
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.nothingLeft()
	linkOf(t, "lan0")
}

// After a failure at any step nothing is there, and another try succeeds.
func TestCreateNetworkUndone(t *testing.T) {
	r := newRig(t)
	netnstest.Sysctl(t, "ipv4/ip_forward", "0")
	for _, op := range []string{"AddNetwork", "Guard"} {
		r.mapper.Fail = func(o string, _ portmap.Publication) error {
			if o == op {
				return errors.New("netlink: no")
			}
			return nil
		}
		assert.Contains(t, r.refused("CreateNetwork", networkOf(1, true, nil)), "netlink: no", op)
		r.mapper.Fail = nil
		r.nothingLeft()
		assert.Equal(t, "0", sysctl(t, "ipv4/ip_forward"))
	}
	r.sys.dir = readOnlySysctls(t, bridgeOf(1))
	assert.Contains(t, r.refused("CreateNetwork", networkOf(1, false, nil)), "run sysctl -w net.ipv4.conf."+bridgeOf(1)+".route_localnet=1 on the host")
	r.sys.dir = defaultSysctlDir
	r.nothingLeft()
	r.ok("CreateNetwork", networkOf(1, true, nil))
}

// readOnlySysctls is what a plugin without a bind mount of /proc/sys/net sees.
// Root may write any file but a sysctl that is read-only to the kernel itself,
// so one of those stands for all.
func readOnlySysctls(t *testing.T, bridge string) string {
	t.Helper()
	dir := t.TempDir()
	file := func(path string) string {
		path = filepath.Join(dir, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		return path
	}
	require.NoError(t, os.WriteFile(file("ipv4/ip_forward"), []byte("1\n"), 0o644))
	require.NoError(t, os.WriteFile(file("ipv6/conf/"+bridge+"/disable_ipv6"), []byte("1\n"), 0o644))
	require.NoError(t, os.Symlink(defaultSysctlDir+"/ipv4/tcp_available_congestion_control", file("ipv4/conf/"+bridge+"/route_localnet")))
	return dir
}

// The localnet door stays shut until the rules stand.
func TestRulesBeforeLocalnet(t *testing.T) {
	r := newRig(t)
	asked := false
	r.mapper.Fail = func(op string, _ portmap.Publication) error {
		if op == "AddNetwork" {
			asked = true
			_, err := os.Stat("/proc/sys/net/ipv4/conf/" + bridgeOf(1) + "/route_localnet")
			assert.ErrorIs(t, err, os.ErrNotExist)
			n, ok := r.store.Network(id(1))
			assert.True(t, ok)
			assert.Equal(t, store.Intent, n.Phase)
		}
		return nil
	}
	r.ok("CreateNetwork", networkOf(1, false, nil))
	assert.True(t, asked)
}

// A network that cannot be removed keeps its record, and goes the next time.
func TestDeleteNetworkAgain(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.run(1, 10, 2, false, "/sb")
	r.mapper.Fail = func(op string, _ portmap.Publication) error {
		if op == "RemoveNetwork" {
			return errors.New("netlink: no")
		}
		return nil
	}
	assert.Contains(t, r.refused("DeleteNetwork", object{"NetworkID": id(1)}), "delete network d00000010000: netlink: no")
	assert.Contains(t, r.refused("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(11),
		"Interface": object{"Address": "10.1.0.3/24"}}), "half removed")
	r.mapper.Fail = nil
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.nothingLeft()
}
