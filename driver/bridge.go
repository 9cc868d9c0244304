package driver

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/fault"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// errNoBridge: the network's record is there, its bridge is not.
var errNoBridge = errors.New("its bridge is missing; restart the Portolan daemon, which makes it again")

// findBridge returns the network's bridge, or nil if there is no interface of
// that name. That it is somebody else's is an error.
func findBridge(n store.Network) (*netlink.Bridge, error) {
	l, err := findLink(n.Bridge)
	if err != nil || l == nil {
		return nil, err
	}
	br, ok := l.(*netlink.Bridge)
	if ok && (br.Alias == aliasNetwork+n.ID || unfinished(br, n)) {
		return br, nil
	}
	return nil, fmt.Errorf("bridge name %s is taken by a %s interface of this host; choose another with -o %s=NAME", n.Bridge, l.Type(), optBridgeName)
}

// unfinished says whether br is ours from a process that was killed before it
// could set the alias, which the kernel does not take at creation.
func unfinished(br *netlink.Bridge, n store.Network) bool {
	return br.Alias == "" && bytes.Equal(br.HardwareAddr, bridgeMAC(n))
}

// ownBridge is findBridge for those who cannot do without.
func ownBridge(n store.Network) (*netlink.Bridge, error) {
	br, err := findBridge(n)
	if err == nil && br == nil {
		err = errNoBridge
	}
	return br, err
}

// makeBridge makes the network's bridge, or whatever of it is missing. It does
// not open 127.0.0.0/8 to it: that is openLocalhost, after the rules stand.
func (d *Driver) makeBridge(n store.Network) error {
	br, err := findBridge(n)
	if err != nil {
		return err
	}
	if br == nil {
		la := netlink.NewLinkAttrs()
		la.Name, la.MTU, la.HardwareAddr = n.Bridge, n.MTU, bridgeMAC(n)
		br = &netlink.Bridge{LinkAttrs: la}
		if err := netlink.LinkAdd(br); err != nil {
			return fmt.Errorf("make bridge %s: %w", n.Bridge, err)
		}
		fault.Point("bridge made")
	}
	if err := d.setUpBridge(n, br); err != nil {
		return fmt.Errorf("set up bridge %s: %w", n.Bridge, err)
	}
	if d.cfg.Zones != nil {
		d.warn(d.cfg.Zones.Add(n.Bridge), "put a bridge into a zone of firewalld", n.ID)
	}
	return nil
}

func (d *Driver) setUpBridge(n store.Network, br *netlink.Bridge) error {
	if err := netlink.LinkSetAlias(br, aliasNetwork+n.ID); err != nil {
		return fmt.Errorf("set alias: %w", err)
	}
	fault.Point("bridge named")
	// A bridge without an address of its own would take its lowest port's, and
	// another one when that leaves: containers would send to nobody until
	// their neighbour entries age.
	if mac := bridgeMAC(n); !bytes.Equal(br.HardwareAddr, mac) {
		if err := netlink.LinkSetHardwareAddr(br, mac); err != nil {
			return fmt.Errorf("set MAC address %s: %w", mac, err)
		}
	}
	if n.MTU != 0 && br.MTU != n.MTU {
		if err := netlink.LinkSetMTU(br, n.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", n.MTU, err)
		}
	}
	if err := d.setBridgeIPv6(n); err != nil {
		return err
	}
	for _, p := range bridgeAddrs(n) {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(br, a); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
		fault.Point("bridge addressed")
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// setBridgeIPv6 turns IPv6 on the bridge off where the host has no business
// there, and keeps containers from advertising routes to the host
// (CVE-2020-13401).
func (d *Driver) setBridgeIPv6(n store.Network) error {
	dir := "ipv6/conf/" + n.Bridge + "/"
	if !n.Gateway6.IsValid() {
		err := d.sys.set(dir+"disable_ipv6", "1")
		if errors.Is(err, os.ErrNotExist) {
			return nil // the kernel has no IPv6, or the MTU is too small for it
		}
		return err
	}
	for _, s := range [][2]string{{"disable_ipv6", "0"}, {"accept_dad", "0"}, {"accept_ra", "0"}} {
		err := d.sys.set(dir+s[0], s[1])
		if errors.Is(err, os.ErrNotExist) {
			return errors.New("this kernel has no IPv6; leave out --ipv6")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// openLocalhost lets the host's own connections to 127.0.0.0/8 be sent to
// containers. Without the network's rules it would also let containers reach
// what listens on the host's loopback.
func (d *Driver) openLocalhost(n store.Network) error {
	if !opensLocalhost(n) {
		return nil
	}
	return d.sys.set("ipv4/conf/"+n.Bridge+"/route_localnet", "1")
}

func opensLocalhost(n store.Network) bool {
	nat := n.Mode4 == "" || n.Mode4 == portmap.ModeNAT || n.Mode4 == portmap.ModeNATUnprotected
	return !n.Internal && nat && n.Gateway4.IsValid()
}

// removeBridge removes the network's bridge. Absent is nil, and so is somebody
// else's under its name.
func (d *Driver) removeBridge(n store.Network) error {
	l, err := findLink(n.Bridge)
	if err != nil {
		return err
	}
	if l != nil {
		br, ok := l.(*netlink.Bridge)
		if !ok || br.Alias != aliasNetwork+n.ID && !unfinished(br, n) {
			d.log.Warn("leave an interface that is not ours", "interface", n.Bridge, "network", n.ID)
			return nil
		}
		if err := removeLink(br); err != nil {
			return err
		}
	}
	// A zone goes by the name, for whoever has it next.
	if d.cfg.Zones != nil {
		d.warn(d.cfg.Zones.Remove(n.Bridge), "take a bridge out of its zone of firewalld", n.ID)
	}
	return nil
}

// bridgeAddrs are the bridge's own addresses.
func bridgeAddrs(n store.Network) []netip.Prefix {
	var addrs []netip.Prefix
	if n.Gateway4.IsValid() {
		addrs = append(addrs, netip.PrefixFrom(n.Gateway4, n.Subnet4.Bits()))
	}
	if n.Gateway6.IsValid() {
		addrs = append(addrs, netip.PrefixFrom(n.Gateway6, n.Subnet6.Bits()))
	}
	return addrs
}

// bridgeMAC is derived from the gateway's address, as those of containers are
// from theirs, so that no two meet; without a gateway, from the network's ID.
func bridgeMAC(n store.Network) net.HardwareAddr {
	switch {
	case n.Gateway4.IsValid():
		return addrMAC(n.Gateway4)
	case n.Gateway6.IsValid():
		return addrMAC(n.Gateway6)
	}
	sum := sha256.Sum256([]byte(n.ID))
	return append(net.HardwareAddr{0x02, 0x43}, sum[:4]...)
}

// addrMAC is 02:42, which is locally administered and Docker's, and the last
// four bytes of an address.
func addrMAC(a netip.Addr) net.HardwareAddr {
	raw := a.AsSlice()
	return append(net.HardwareAddr{0x02, 0x42}, raw[len(raw)-4:]...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
