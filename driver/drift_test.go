package driver

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// standing is all of network 1 that a repair has to bring back.
func standing(t *testing.T) (lines []string) {
	t.Helper()
	for _, name := range []string{bridgeOf(1), "pvd000000a00", "pvd000000b00"} {
		l, err := findLink(name)
		require.NoError(t, err)
		if l == nil {
			return nil
		}
		a := l.Attrs()
		master := ""
		if a.MasterIndex != 0 {
			master = linkName(a.MasterIndex)
		}
		lines = append(lines, strings.Join([]string{name, a.Alias, a.HardwareAddr.String(), master, (a.Flags & 1).String(), fmt.Sprint(a.MTU, a.Group)}, " "))
		if master != "" {
			flags, err := netlink.LinkGetProtinfo(l)
			require.NoError(t, err)
			lines = append(lines, name+" "+flags.String())
		}
	}
	addrs, err := netlink.AddrList(linkOf(t, bridgeOf(1)), netlink.FAMILY_ALL)
	require.NoError(t, err)
	for _, a := range addrs {
		lines = append(lines, a.IPNet.String())
	}
	for _, s := range []string{"ipv4/conf/BR/route_localnet", "ipv4/conf/BR/forwarding", "ipv6/conf/BR/forwarding", "ipv6/conf/BR/accept_ra",
		"ipv6/conf/BR/disable_ipv6", "ipv6/conf/BR/accept_dad", "ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		s = strings.Replace(s, "BR", bridgeOf(1), 1)
		lines = append(lines, s+" "+sysctl(t, s))
	}
	slices.Sort(lines)
	return lines
}

func TestCheckPutsBack(t *testing.T) {
	r := twoNetworks(t)
	for _, tt := range []struct {
		damage string // BR is the bridge
		want   []string
	}{
		{"ip link del BR", []string{"bridge BR: it was deleted", "port pvd000000a00 of bridge BR: it was taken off its bridge",
			"port pvd000000b00 of bridge BR: it was taken off its bridge", "net.ipv4.conf.BR.route_localnet was 0"}},
		{"ip link set BR down", []string{"bridge BR: it was set down"}},
		{"ip link set BR address 02:42:0a:01:00:99", []string{"bridge BR: its MAC address was changed"}},
		{"ip addr del 10.1.0.1/24 dev BR", []string{"bridge BR: its address 10.1.0.1/24 was removed"}},
		{"ip addr del fd00:1::1/64 dev BR", []string{"bridge BR: its address fd00:1::1/64 was removed"}},
		{"ip addr flush dev BR", []string{"bridge BR: its address 10.1.0.1/24 was removed"}},
		{"ip link set pvd000000a00 nomaster", []string{"port pvd000000a00 of bridge BR: it was taken off its bridge"}},
		{"ip link set pvd000000a00 master " + bridgeOf(2), []string{"port pvd000000a00 of bridge BR: it was taken off its bridge"}},
		{"ip link set pvd000000a00 down", []string{"port pvd000000a00 of bridge BR: it was set down"}},
		{"ip link set pvd000000a00 group 0", []string{"port pvd000000a00 of bridge BR: it was taken out of the group of closed ports"}},
		{"bridge link set dev pvd000000a00 hairpin off", []string{"port pvd000000a00 of bridge BR: its hairpin mode or its isolation was changed"}},
		{"bridge link set dev pvd000000a00 isolated off", []string{"port pvd000000a00 of bridge BR: its hairpin mode or its isolation was changed"}},
		{"sysctl -qw net.ipv4.conf.BR.route_localnet=0", []string{"net.ipv4.conf.BR.route_localnet was 0"}},
		{"sysctl -qw net.ipv4.conf.BR.forwarding=0", []string{"net.ipv4.conf.BR.forwarding was 0"}},
		{"sysctl -qw net.ipv6.conf.BR.accept_ra=2", []string{"net.ipv6.conf.BR.accept_ra was 2"}},
		{"sysctl -qw net.ipv6.conf.all.forwarding=0", []string{"net.ipv6.conf.all.forwarding was 0"}},
		{"sysctl -qw net.ipv4.ip_forward=0", []string{"net.ipv4.ip_forward was 0"}},
	} {
		t.Run(tt.damage, func(t *testing.T) {
			repaired, err := r.Check(true)
			require.NoError(t, err)
			require.Empty(t, repaired)
			before := standing(t)
			pubs := r.mapper.Publications()
			args := strings.Fields(strings.ReplaceAll(tt.damage, "BR", bridgeOf(1)))
			out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.NotEqual(t, before, standing(t))

			repaired, err = r.Check(true)
			require.NoError(t, err)
			var want []string
			for _, w := range tt.want {
				want = append(want, strings.ReplaceAll(w, "BR", bridgeOf(1)))
			}
			assert.Equal(t, want, repaired)
			assert.Equal(t, before, standing(t))
			assert.Equal(t, pubs, r.mapper.Publications())
			repaired, err = r.Check(true)
			require.NoError(t, err)
			assert.Empty(t, repaired, "nothing is left to put back")
		})
	}
}

func TestCheckPutsBackAnMTU(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(3, false, object{"com.docker.network.driver.mtu": "1400"}))
	require.NoError(t, netlink.LinkSetMTU(linkOf(t, bridgeOf(3)), 1300))
	repaired, err := r.Check(true)
	require.NoError(t, err)
	assert.Equal(t, []string{"bridge " + bridgeOf(3) + ": its MTU was changed"}, repaired)
	assert.Equal(t, 1400, linkOf(t, bridgeOf(3)).Attrs().MTU)
}

// With a carrier the kernel gives the bridge a link-local address, once.
func TestCheckPutsBackALinkLocalAddress(t *testing.T) {
	r := twoNetworks(t)
	require.NoError(t, netlink.LinkSetUp(linkOf(t, "pcd000000a00")))
	linkLocal := func() (found string) {
		addrs, err := netlink.AddrList(linkOf(t, bridgeOf(1)), netlink.FAMILY_V6)
		require.NoError(t, err)
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() {
				found += a.IPNet.String()
			}
		}
		return found
	}
	require.Eventually(t, func() bool { return linkLocal() != "" }, 20*time.Second, 5*time.Millisecond)
	before := linkLocal()
	require.NoError(t, netlink.AddrDel(linkOf(t, bridgeOf(1)), &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(before))}))
	repaired, err := r.Check(true)
	require.NoError(t, err)
	assert.Equal(t, []string{"bridge " + bridgeOf(1) + ": its link-local address was removed"}, repaired)
	assert.Equal(t, before, linkLocal())
}

// Where the rules cannot be had, nothing is opened, whatever is missing.
func TestCheckOpensNothingWithoutRules(t *testing.T) {
	r := twoNetworks(t)
	require.NoError(t, netlink.LinkDel(linkOf(t, bridgeOf(1))))
	setSysctl(t, "ipv4/conf/"+bridgeOf(2)+"/route_localnet", "0")
	setSysctl(t, "ipv4/ip_forward", "0")
	mapper := r.Driver.mapper
	r.Driver.mapper = brokenMapper{mapper}
	repaired, err := r.Check(true)
	require.ErrorIs(t, err, errBroken)
	assert.Empty(t, repaired)
	link, err := findLink(bridgeOf(1))
	require.NoError(t, err)
	assert.Nil(t, link)
	assert.Equal(t, "0", sysctl(t, "ipv4/conf/"+bridgeOf(2)+"/route_localnet"))
	assert.Equal(t, "0", sysctl(t, "ipv4/ip_forward"))

	r.Driver.mapper = mapper
	_, err = r.Check(true)
	require.NoError(t, err)
	assert.Equal(t, "1", sysctl(t, "ipv4/conf/"+bridgeOf(1)+"/route_localnet"))
	assert.Equal(t, "1", sysctl(t, "ipv4/conf/"+bridgeOf(2)+"/route_localnet"))
}

var errBroken = errors.New("no rules today")

type brokenMapper struct{ portmap.Mapper }

func (brokenMapper) Check() (bool, error) { return false, errBroken }

// A container whose interface was deleted is cut off, and its ports are given
// back; one whose sandbox has ended is none.
func TestCheckBuriesTheCut(t *testing.T) {
	r := twoNetworks(t)
	var log bytes.Buffer
	r.log = slog.New(slog.NewTextHandler(&log, nil))
	sandbox := filepath.Join(t.TempDir(), "sandbox")
	require.NoError(t, os.WriteFile(sandbox, nil, 0o600))
	r.run(1, 12, 4, true, sandbox)
	r.ok("ProgramExternalConnectivity", programOf(1, 12, udp("", 55, 53)))
	_, err := r.store.UpdateEndpoint(id(12), func(e *store.Endpoint) { e.Owner = &store.Owner{ContainerName: "web"} })
	require.NoError(t, err)
	for _, name := range []string{"pvd000000a00", "pvd000000c00"} {
		require.NoError(t, netlink.LinkDel(linkOf(t, name)))
	}
	repaired, err := r.Check(true)
	require.NoError(t, err)
	assert.Empty(t, repaired)
	assert.Equal(t, []string{"container web (endpoint d000000c0000) is cut off: its interface was deleted; restart the container"},
		r.Cut())
	assert.Contains(t, log.String(), "which cannot be undone")
	assert.Len(t, r.mapper.Publications(), 1, "endpoint 20 alone")
	assert.NotContains(t, r.pub.heldBy, sandbox)
	for _, e := range []int{10, 12} {
		ep, _ := r.store.Endpoint(id(e))
		assert.False(t, ep.Gone.IsZero())
	}
	require.NoError(t, os.Remove(sandbox))
	assert.Empty(t, r.Cut(), "the container has ended")
	r.ok("Leave", endpointOf(1, 12))
	r.ok("DeleteEndpoint", endpointOf(1, 12))
}

// A name that is somebody else's now is reported and left alone.
func TestCheckLeavesOthersAlone(t *testing.T) {
	r := twoNetworks(t)
	require.NoError(t, netlink.LinkDel(linkOf(t, bridgeOf(1))))
	netnstest.Bridge(t, bridgeOf(1))
	_, err := r.Check(true)
	require.ErrorContains(t, err, "is taken by a bridge interface of this host")
	assert.Equal(t, "0", sysctl(t, "ipv4/conf/"+bridgeOf(1)+"/route_localnet"))
	require.NoError(t, netlink.LinkDel(linkOf(t, bridgeOf(1))))
	_, err = r.Check(true)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetDown(linkOf(t, bridgeOf(1))))
	require.NoError(t, netlink.LinkSetName(linkOf(t, bridgeOf(1)), "other"))
	_, err = r.Check(true)
	require.ErrorContains(t, err, "was renamed; give it its name again: ip link set other name "+bridgeOf(1))
}

// With --ip-forward=false forwarding is left alone, and missed.
func TestCheckMissesForwarding(t *testing.T) {
	r := twoNetworks(t)
	r.cfg.IPForward = false
	_, err := r.Check(false)
	require.NoError(t, err)
	setSysctl(t, "ipv4/ip_forward", "0")
	repaired, err := r.Check(false)
	require.ErrorContains(t, err, "net.ipv4.ip_forward was set to 0, and Portolan may not change it")
	assert.Empty(t, repaired)
	assert.Equal(t, "0", sysctl(t, "ipv4/ip_forward"))
	setSysctl(t, "ipv4/ip_forward", "1")
	_, err = r.Check(false)
	require.NoError(t, err)
}

// Forwarding that was on before us comes back for everybody, and what is on by
// us with its guard.
func TestCheckKnowsWhoForwards(t *testing.T) {
	r := newRig(t)
	setSysctl(t, "ipv4/ip_forward", "1")
	setSysctl(t, "ipv6/conf/all/forwarding", "0")
	r.ok("CreateNetwork", networkOf(1, true, nil))
	r.run(1, 10, 2, true, "/sb1")
	_, err := r.Check(false)
	require.NoError(t, err)
	for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		setSysctl(t, path, "0")
		repaired, err := r.Check(false)
		require.NoError(t, err)
		assert.Equal(t, []string{sysctlName(path) + " was 0"}, repaired)
		assert.Equal(t, "1", sysctl(t, path))
	}
	assert.False(t, r.guarded(families[0]))
	assert.True(t, r.guarded(families[1]))

	// A container that comes first does as Check would.
	setSysctl(t, "ipv4/ip_forward", "0")
	r.run(1, 11, 3, true, "/sb2")
	assert.Equal(t, "1", sysctl(t, "ipv4/ip_forward"))
	assert.False(t, r.guarded(families[0]))

	// What somebody turns off while nothing runs was turned off.
	for _, e := range []int{10, 11} {
		r.ok("Leave", endpointOf(1, e))
	}
	setSysctl(t, "ipv4/ip_forward", "0")
	repaired, err := r.Check(false)
	require.NoError(t, err)
	assert.Empty(t, repaired)
	r.run(1, 12, 4, true, "/sb3")
	assert.Equal(t, "1", sysctl(t, "ipv4/ip_forward"))
	assert.True(t, r.guarded(families[0]))
}

func setSysctl(t *testing.T, path, value string) {
	t.Helper()
	require.NoError(t, os.WriteFile("/proc/sys/net/"+path, []byte(value), 0o644))
}
