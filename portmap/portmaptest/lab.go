package portmaptest

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/portmap"
)

// lab is the network of TestTraffic. The test's own namespace is the Docker
// host:
//
//	neighbour 198.51.100.2 ─── lan0 ┐
//	c2 172.20.0.2, c3 172.20.0.3 ── plbr0 (network net0)
//	c4 172.21.0.2 ───────────────── plbr1 (network net1)
//	foreign 172.17.0.2 ──────────── docker0 (not ours)
//
// with the same last numbers in IPv6: 2001:db8:1::, fd20::, fd21::, fd17::.
type lab struct {
	*testing.T // of the case that runs
	m          portmap.Mapper

	neighbour, c2, c3, c4, foreign *netnstest.Host
}

// The Docker host's addresses in the LAN. The second of each family is there
// for mappings to one address; in IPv6 it has another prefix, so that the
// kernel does not prefer it as a source.
var (
	lan4, lan4b = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.10")
	lan6, lan6b = netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:2::10")

	neighbour4, neighbour6 = netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:1::2")
	foreign4, foreign6     = netip.MustParseAddr("172.17.0.2"), netip.MustParseAddr("fd17::2")
	localhost4             = netip.MustParseAddr("127.0.0.1")
)

// newLab builds the lab, with Docker's own rules in it, and loads the mapper.
func newLab(t *testing.T, m portmap.Mapper) *lab {
	t.Helper()
	l := &lab{T: t, m: m}
	t.Cleanup(func() {
		require.NoError(t, m.Load(nil, nil))
		require.NoError(t, m.Close())
		flushAll(t)
	})
	netnstest.Sysctl(t, "ipv4/ip_forward", "1")
	netnstest.Sysctl(t, "ipv6/conf/all/forwarding", "1")
	l.neighbour = host(t, "lan0", "",
		[]string{"198.51.100.1/24", "198.51.100.10/24", "2001:db8:1::1/64", "2001:db8:2::10/128"},
		[]string{"198.51.100.2/24", "2001:db8:1::2/64"}, "198.51.100.1", "2001:db8:1::1")
	netnstest.Bridge(t, "plbr0", "172.20.0.1/16", "fd20::1/64")
	netnstest.Bridge(t, "plbr1", "172.21.0.1/16", "fd21::1/64")
	netnstest.Bridge(t, "docker0", "172.17.0.1/16", "fd17::1/64")
	l.c2 = host(t, "veth2", "plbr0", nil, []string{"172.20.0.2/16", "fd20::2/64"}, "172.20.0.1", "fd20::1")
	l.c3 = host(t, "veth3", "plbr0", nil, []string{"172.20.0.3/16", "fd20::3/64"}, "172.20.0.1", "fd20::1")
	l.c4 = host(t, "veth4", "plbr1", nil, []string{"172.21.0.2/16", "fd21::2/64"}, "172.21.0.1", "fd21::1")
	l.foreign = host(t, "veth5", "docker0", nil, []string{"172.17.0.2/16", "fd17::2/64"}, "172.17.0.1", "fd17::1")
	l.dockerRules(true)
	l.bridgeNetfilter("1")
	l.load([]portmap.Network{net0, net1})
	netnstest.Sysctl(t, "ipv4/conf/plbr0/route_localnet", "1")
	netnstest.Sysctl(t, "ipv4/conf/plbr1/route_localnet", "1")
	return l
}

// host makes a host whose eth0 is connected to an interface of the Docker host,
// a port of the bridge if there is one, and waits until frames pass: until the
// kernel has seen the carrier of a new pair, it drops them.
func host(t *testing.T, iface, bridge string, hereAddrs, thereAddrs []string, gateways ...string) *netnstest.Host {
	t.Helper()
	h := netnstest.NewHost(t)
	h.Connect(iface, "eth0", bridge, hereAddrs, thereAddrs)
	for _, gw := range gateways {
		h.Route(gw)
	}
	for name, at := range map[string]place{iface: here{}, "eth0": h} {
		require.Eventually(t, func() bool {
			up := false
			err := at.Do(func() error {
				link, err := netlink.LinkByName(name)
				up = err == nil && link.Attrs().OperState == netlink.OperUp
				return err
			})
			return err == nil && up
		}, answerWait, time.Millisecond, "carrier of %s", name)
	}
	return h
}

// load makes nets and pubs all that the mapper has.
func (l *lab) load(nets []portmap.Network, pubs ...portmap.Publication) {
	l.Helper()
	require.NoError(l.T, l.m.Load(nets, pubs))
}

// publish loads both networks, unchanged, and pubs.
func (l *lab) publish(pubs ...portmap.Publication) {
	l.Helper()
	l.load([]portmap.Network{net0, net1}, pubs...)
}

// bridgeNetfilter says whether bridged packets go through the IP chains: "1",
// as Docker sets it, or "0".
func (l *lab) bridgeNetfilter(value string) {
	l.Helper()
	netnstest.Sysctl(l.T, "bridge/bridge-nf-call-iptables", value)
	netnstest.Sysctl(l.T, "bridge/bridge-nf-call-ip6tables", value)
}

// dockerRules replaces every rule by those that an engine makes for docker0.
func (l *lab) dockerRules(userReturns bool) {
	l.Helper()
	flushAll(l.T)
	l.dockerChains(userReturns)
}

// dockerChains adds the rules that an engine makes for docker0. Until engine
// 28, DOCKER-USER ends with a RETURN.
func (l *lab) dockerChains(userReturns bool) {
	l.Helper()
	for tool, subnet := range map[string]string{"iptables": "172.17.0.0/16", "ip6tables": "fd17::/64"} {
		run(l.T, tool, "-P", "FORWARD", "DROP")
		run(l.T, tool, "-N", "DOCKER-USER")
		if userReturns {
			run(l.T, tool, "-A", "DOCKER-USER", "-j", "RETURN")
		}
		run(l.T, tool, "-A", "FORWARD", "-o", "docker0", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT")
		run(l.T, tool, "-A", "FORWARD", "-i", "docker0", "!", "-o", "docker0", "-j", "ACCEPT")
		run(l.T, tool, "-I", "FORWARD", "-j", "DOCKER-USER")
		run(l.T, tool, "-t", "nat", "-A", "POSTROUTING", "-s", subnet, "!", "-o", "docker0", "-j", "MASQUERADE")
	}
}

func flushAll(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"iptables", "ip6tables"} {
		run(t, tool, "-P", "FORWARD", "ACCEPT")
	}
	run(t, "nft", "flush", "ruleset")
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s: %s", strings.Join(args, " "), out)
	return string(out)
}
