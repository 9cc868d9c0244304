package driver

import (
	"bytes"
	"io/fs"
	"log/slog"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// forwardingOff is a host that forwards nothing. Switching IPv4 changes
// accept_redirects too, so that comes last and is put back last.
func forwardingOff(t *testing.T) {
	t.Helper()
	netnstest.Sysctl(t, "ipv4/ip_forward", "0")
	netnstest.Sysctl(t, "ipv6/conf/all/forwarding", "0")
	netnstest.Sysctl(t, "ipv4/conf/all/accept_redirects", "0")
}

func TestForwarding(t *testing.T) {
	forwardingOff(t)
	netnstest.Bridge(t, "lan0", "192.0.2.1/24")
	netnstest.Sysctl(t, "ipv4/conf/lan0/forwarding", "1")
	r := newRig(t)
	state := func() []string {
		return []string{
			sysctl(t, "ipv4/ip_forward"), sysctl(t, "ipv6/conf/all/forwarding"),
			sysctl(t, "ipv4/conf/all/accept_redirects"), sysctl(t, "ipv4/conf/lan0/forwarding"),
		}
	}
	guarded := func(want4, want6 bool) {
		t.Helper()
		got4, got6, _ := r.mapper.Guarded()
		assert.Equal(t, [2]bool{want4, want6}, [2]bool{got4, got6})
	}
	before := state()
	require.Equal(t, []string{"0", "0", "0", "1"}, before)

	r.ok("CreateNetwork", networkOf(1, true, object{keyInternal: true}))
	assert.Equal(t, before, state(), "an internal network needs none")
	// The guard is up before the door opens, and the record before both.
	r.mapper.Fail = func(op string, _ portmap.Publication) error {
		if op == "Guard" && sysctl(t, "ipv4/ip_forward") == "0" {
			assert.Empty(t, r.store.Sysctls())
		}
		return nil
	}
	r.ok("CreateNetwork", networkOf(2, false, nil))
	r.mapper.Fail = nil
	guarded(true, false)
	assert.Equal(t, []string{"1", "0", "0", "1"}, state())
	r.ok("CreateNetwork", networkOf(3, true, nil))
	guarded(true, true)
	assert.Equal(t, []string{"1", "1", "0", "1"}, state())

	r.ok("DeleteNetwork", object{"NetworkID": id(3)})
	guarded(true, false)
	assert.Equal(t, []string{"1", "0", "0", "1"}, state())
	r.ok("DeleteNetwork", object{"NetworkID": id(2)})
	guarded(false, false)
	assert.Equal(t, before, state())
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.nothingLeft()
}

// zones is a Zones that tells of what is removed.
type zones func(bridge string)

func (zones) Add(string) error             { return nil }
func (z zones) Remove(bridge string) error { z(bridge); return nil }

// The last two networks go at the same time.
func TestForwardingOfTheLastTwo(t *testing.T) {
	forwardingOff(t)
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, nil))
	r.ok("CreateNetwork", networkOf(2, true, nil))
	require.Equal(t, "1", sysctl(t, "ipv6/conf/all/forwarding"))
	r.cfg.Zones = zones(func(bridge string) {
		if bridge == bridgeOf(1) {
			r.ok("DeleteNetwork", object{"NetworkID": id(2)})
		}
	})
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	assert.Equal(t, "0", sysctl(t, "ipv4/ip_forward"))
	assert.Equal(t, "0", sysctl(t, "ipv6/conf/all/forwarding"))
	assert.Empty(t, r.going)
	r.nothingLeft()
}

// A zone of firewalld goes by the bridge's name, which the next one may have.
func TestZoneOfABridgeThatIsGone(t *testing.T) {
	r := newRig(t)
	var removed []string
	r.cfg.Zones = zones(func(bridge string) { removed = append(removed, bridge) })
	r.ok("CreateNetwork", networkOf(1, false, nil))
	require.NoError(t, netlink.LinkDel(linkOf(t, bridgeOf(1))))
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	assert.Equal(t, []string{bridgeOf(1)}, removed)
}

// What somebody else has turned on, or off again, is theirs.
func TestForwardingOfOthers(t *testing.T) {
	forwardingOff(t)
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, nil))
	netnstest.Sysctl(t, "ipv6/conf/all/forwarding", "2")
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	assert.Equal(t, "2", sysctl(t, "ipv6/conf/all/forwarding"))
	r.nothingLeft()

	netnstest.Sysctl(t, "ipv4/ip_forward", "1")
	r.ok("CreateNetwork", networkOf(1, false, nil))
	assert.Empty(t, r.store.Sysctls())
	got4, _, _ := r.mapper.Guarded()
	assert.False(t, got4)
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	assert.Equal(t, "1", sysctl(t, "ipv4/ip_forward"))
}

func TestForwardingNotAllowed(t *testing.T) {
	forwardingOff(t)
	var log bytes.Buffer
	r := newRig(t)
	r.cfg.IPForward = false
	r.Driver.log = slog.New(slog.NewTextHandler(&log, nil))
	r.ok("CreateNetwork", networkOf(1, true, nil))
	assert.Equal(t, "0", sysctl(t, "ipv4/ip_forward"))
	assert.Contains(t, log.String(), `missing="net.ipv4.ip_forward=1"`)
	assert.Contains(t, log.String(), `missing="net.ipv6.conf.all.forwarding=1"`)
	assert.Empty(t, r.store.Sysctls())
}

// Without accept_ra=2, a host that begins to forward loses the default route
// that a router has advertised.
func TestForwardingKeepsAdvertisedRoute(t *testing.T) {
	forwardingOff(t)
	netnstest.Bridge(t, "lan0", "fd00:99::2/64")
	netnstest.Bridge(t, "lan1", "fd00:98::2/64")
	netnstest.Sysctl(t, "ipv6/conf/lan0/accept_ra", "1")
	netnstest.Sysctl(t, "ipv6/conf/lan1/accept_ra", "1")
	require.NoError(t, netlink.RouteAdd(&netlink.Route{
		LinkIndex: linkOf(t, "lan0").Attrs().Index, Gw: net.ParseIP("fd00:99::1"), Protocol: unix.RTPROT_RA,
		Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}))
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, nil))
	assert.Equal(t, "2", sysctl(t, "ipv6/conf/lan0/accept_ra"))
	assert.Equal(t, "1", sysctl(t, "ipv6/conf/lan1/accept_ra"))
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	assert.Equal(t, "1", sysctl(t, "ipv6/conf/lan0/accept_ra"))
	assert.Equal(t, "0", sysctl(t, "ipv6/conf/all/forwarding"))
	r.nothingLeft()
}

// Where sysctls cannot be written, what is right already is no trouble, and
// what is not has a way out.
func TestReadOnlySysctls(t *testing.T) {
	dir := readOnlySysctls(t, "br")
	s := sysctls{dir}
	require.NoError(t, s.set("ipv4/ip_forward", "1"))
	err := s.set("ipv4/conf/br/route_localnet", "1")
	require.ErrorIs(t, err, fs.ErrPermission)
	assert.Contains(t, err.Error(), "set net.ipv4.conf.br.route_localnet to 1 (it is ")
	assert.Contains(t, err.Error(), "run sysctl -w net.ipv4.conf.br.route_localnet=1 on the host, or give Portolan a "+dir+" that it can write")
	require.ErrorIs(t, s.set("ipv4/no_such", "1"), fs.ErrNotExist)
	require.NoError(t, s.undo(store.Sysctl{Path: "ipv4/no_such", Old: "1", New: "0"}))
	require.NoError(t, s.undo(store.Sysctl{Path: "ipv4/conf/br/route_localnet", Old: "0", New: "1"}), "somebody else's by now")
	require.Error(t, s.undo(store.Sysctl{Path: "ipv4/conf/br/route_localnet", Old: "0"}))
	assert.Equal(t, "net.ipv4.conf.br/lan.forwarding", sysctlName("ipv4/conf/br.lan/forwarding"))
}
