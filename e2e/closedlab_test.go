package e2e

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/enginetest"
)

// closedLab is a host with a container of every kind, and spots that try to
// reach them. Its drivers are Portolan and, for comparison, Docker's own bridge.
//
//	neighbour ── lan0 ┐       ┌ a1, a2 (network a; a1 publishes)
//	friend ──── vpn0 ─┤ host ─┼ b1 (network b, publishes)
//	                          ├ internal1 (network i, --internal, publishes)
//	                          ├ trusted1 (network t, which trusts vpn0; publishes nothing)
//	                          └ docker1 (docker0, publishes)
//
// Every container serves ports 7000 and 7001, of which it publishes 7000.
type closedLab struct {
	*host
	builtIn bool // networks are Docker's own

	lan, friend, ours                      *spot
	a1, a2, b1, internal1, trusted1, other *spot
}

// The host's addresses by vpn0, which the neighbour has no business with.
const (
	vpnIface = "vpn0"
	vpn4     = "192.0.2.1"
	vpn6     = "2001:db8:2::1"
)

// closedNetworks are the subnets by their third number, and options of docker
// network create.
var closedNetworks = map[string][]string{
	"a": {"30"},
	"b": {"31"},
	"i": {"32", "--internal"},
	"t": {"33", "-o", "com.docker.network.bridge.trusted_host_interfaces=" + vpnIface},
}

// newClosedLab makes it, with the mapper given or with none, which is Docker's
// own driver.
func newClosedLab(t *testing.T, mapper string) *closedLab {
	l := &closedLab{host: newHost(t), builtIn: mapper == ""}
	l.export(&testscript.Env{Values: map[any]any{}})
	l.layWire()
	if !l.builtIn {
		require.NoError(t, l.startDaemon(mapper))
	}
	for name, args := range closedNetworks {
		l.network(name, args[0], args[1:]...)
	}
	hostPath := l.engine.Host.Path()
	lan := l.mac(hostPath, enginetest.HostInterface)
	l.ours = l.spot("the host", hostPath, "", nil, enginetest.HostIPv4, enginetest.HostIPv6)
	l.lan = l.spot("the neighbour", l.engine.Peer.Path(), enginetest.PeerInterface, lan, enginetest.PeerIPv4, enginetest.PeerIPv6)
	l.friend = l.spot("the friend", l.engine.Peer.Path(), "vpn1", l.mac(hostPath, vpnIface), "192.0.2.2", "2001:db8:2::2")
	l.a1 = l.container("a1", "a", "5300:7000", "127.0.0.1:5301:7000", "[::1]:5302:7000", enginetest.HostIPv4+":5303:7000")
	l.a2 = l.container("a2", "a")
	l.b1 = l.container("b1", "b", "5400:7000")
	l.internal1 = l.container("internal1", "i", "5500:7000")
	l.trusted1 = l.container("trusted1", "t")
	l.other = l.container("docker1", "bridge", "5600:7000")
	return l
}

// layWire makes vpn0, another wire to the neighbour, and takes it away before
// the host is looked at.
func (l *closedLab) layWire() {
	e := l.engine
	for _, args := range [][]string{
		{"host", "ip", "link", "add", vpnIface, "type", "veth", "peer", "name", "vpn1", "netns", e.Peer.Name},
		{"host", "ip", "addr", "add", vpn4 + "/24", "dev", vpnIface},
		{"host", "ip", "addr", "add", vpn6 + "/64", "dev", vpnIface, "nodad"},
		{"host", "ip", "link", "set", vpnIface, "up"},
		{"neighbour", "ip", "link", "set", "vpn1", "up"},
	} {
		l.must(args...)
	}
	l.t.Cleanup(func() {
		_, err := enginetest.Run(l.command("host", "ip", "link", "del", vpnIface))
		assert.NoError(l.t, err)
	})
}

func (l *closedLab) must(args ...string) string {
	l.t.Helper()
	out, err := enginetest.Run(l.command(args...))
	require.NoError(l.t, err)
	return out
}

func (l *closedLab) network(name, number string, options ...string) {
	l.t.Helper()
	d := driver
	if l.builtIn {
		d = "bridge"
	}
	l.must(append([]string{"docker", "network", "create", "-d", d,
		"-o", "com.docker.network.bridge.name=" + bridgeOf(name),
		"--subnet", "172." + number + ".0.0/24", "--gateway", "172." + number + ".0.1",
		"--ipv6", "--subnet", "fd00:" + number + "::/64", "--gateway", "fd00:" + number + "::1"},
		append(options, name)...)...)
}

func bridgeOf(network string) string {
	if network == "bridge" {
		return "docker0"
	}
	return "closed-" + network
}

// container runs one that publishes ports with all three protocols: where the
// kernel has no SCTP sockets, Docker's own driver publishes none.
func (l *closedLab) container(name, network string, ports ...string) *spot {
	l.t.Helper()
	args := []string{"docker", "run", "-d", "--name", name, "--network", network}
	for _, port := range ports {
		args = append(args, "-p", port, "-p", port+"/udp")
		if !l.builtIn && network != "bridge" && !strings.HasPrefix(port, "[::1]") {
			args = append(args, "-p", port+"/sctp")
		}
	}
	l.must(append(args, image, "echo", "-tcp", "7000-7001", "-udp", "7000-7001")...)
	pid := l.must("docker", "inspect", "--format", "{{.State.Pid}}", name)
	addrs := strings.Fields(l.must("docker", "inspect", "--format",
		"{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", name))
	if len(addrs) == 1 { // docker0 has no IPv6
		addrs = append(addrs, "")
	}
	hostPath := l.engine.Host.Path()
	return l.spot(name, filepath.Join("/proc", pid, "ns/net"), "eth0", l.mac(hostPath, bridgeOf(network)), addrs[0], addrs[1])
}

func (l *closedLab) spot(name, ns, iface string, router net.HardwareAddr, addr4, addr6 string) *spot {
	l.t.Helper()
	p := &spot{name: name, ns: ns, iface: iface, router: router, addr4: netip.MustParseAddr(addr4)}
	if addr6 != "" {
		p.addr6 = netip.MustParseAddr(addr6)
	}
	p.listen(l.t)
	return p
}

func (l *closedLab) mac(ns, iface string) (mac net.HardwareAddr) {
	l.t.Helper()
	require.NoError(l.t, enginetest.InNetwork(ns, func() error {
		link, err := net.InterfaceByName(iface)
		if err == nil {
			mac = link.HardwareAddr
		}
		return err
	}))
	return mac
}

// gateway is the host's address on the bridge of the spot's network.
func (p *spot) gateway(is4 bool) netip.Addr {
	if is4 {
		b := p.addr4.As4()
		b[3] = 1
		return netip.AddrFrom4(b)
	}
	b := p.addr6.As16()
	clear(b[8:])
	b[15] = 1
	return netip.AddrFrom16(b)
}

// removeContainers ends a lab without a daemon.
func (l *closedLab) removeContainers() {
	ids := strings.Fields(l.must("docker", "ps", "-aq"))
	l.must(append([]string{"docker", "rm", "-f"}, ids...)...)
}
