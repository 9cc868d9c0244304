package driver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	mdl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/fault"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// addrGenNone is IN6_ADDR_GEN_MODE_NONE: no link-local address by itself.
const addrGenNone = 1

// PortPrefix begins the name of every bridge port of ours.
const PortPrefix = "pv"

// vethNames are the two ends of an endpoint's veth pair: the bridge's port, and
// what the engine moves into the container.
func vethNames(endpoint string) (port, inside string) {
	short := endpoint[:min(10, len(endpoint))]
	return PortPrefix + short, "pc" + short
}

// plug makes the endpoint's veth pair, one end of it a port of the network's
// bridge. What an earlier attempt left is replaced. After an error nothing is
// left.
func plug(n store.Network, ep store.Endpoint) (err error) {
	br, err := ownBridge(n)
	if err != nil {
		return err
	}
	if err := unplug(ep.ID); err != nil {
		return err
	}
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return fmt.Errorf("MAC address of the record: %w", err)
	}
	la := netlink.NewLinkAttrs()
	v := netlink.NewVeth(la)
	v.Name, v.PeerName = vethNames(ep.ID)
	v.MTU, v.PeerMTU = n.MTU, uint32(n.MTU)
	v.PeerHardwareAddr = mac
	if err := netlink.LinkAdd(v); err != nil {
		return fmt.Errorf("make veth pair %s: %w", v.Name, err)
	}
	fault.Point("veth made")
	defer func() {
		if err != nil {
			err = errors.Join(err, removeLink(v))
		}
	}()
	if err := netlink.LinkSetAlias(v, aliasEndpoint+ep.ID); err != nil {
		return fmt.Errorf("set alias of %s: %w", v.Name, err)
	}
	fault.Point("veth named")
	// Neither does the host's neighbour table know the container of before any
	// more, whose MAC address was another one.
	if err := forgetNeighbours(br, ep); err != nil {
		return err
	}
	return attach(n, br, v)
}

// attach makes l a port of the network's bridge, with all that belongs to it,
// and sets it up.
func attach(n store.Network, br *netlink.Bridge, l netlink.Link) error {
	name := l.Attrs().Name
	// First, so that the rules that keep ports apart know it from the start.
	if n.NoICC {
		if err := netlink.LinkSetGroup(l, portmap.PortGroup); err != nil {
			return fmt.Errorf("put %s into the group of closed ports: %w", name, err)
		}
	}
	if err := netlink.LinkSetMaster(l, br); err != nil {
		return fmt.Errorf("make %s a port of %s: %w", name, br.Name, err)
	}
	fault.Point("veth attached")
	mode := wantedMode(n, portmap.PortsApart)
	if err := netlink.LinkSetHairpin(l, mode.hairpin); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", name, err)
	}
	if err := netlink.LinkSetIsolated(l, mode.isolated); err != nil {
		return fmt.Errorf("isolate port %s: %w", name, err)
	}
	// A port is not for talking to. A kernel without IPv6 cannot do it, and
	// need not.
	err := netlink.LinkSetIP6AddrGenMode(l, addrGenNone)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("keep %s without link-local address: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	fault.Point("veth up")
	return nil
}

// findPort returns the endpoint's bridge port, or nil. Its other end, wherever
// it is, exists as long as it does.
func findPort(endpoint string) (netlink.Link, error) {
	name, _ := vethNames(endpoint)
	l, err := findLink(name)
	if err != nil || l == nil {
		return nil, err
	}
	// Without an alias it is ours from a process that was killed before it
	// could set one: nobody else has such names.
	if alias := l.Attrs().Alias; l.Type() != "veth" || alias != "" && alias != aliasEndpoint+endpoint {
		return nil, nil
	}
	return l, nil
}

// abandoned says whether the inner end of the endpoint's veth pair lies on this
// host: the engine moves it into the container after Join, and back when the
// container ends, for the driver to remove.
func abandoned(endpoint string) (bool, error) {
	_, inside := vethNames(endpoint)
	l, err := findLink(inside)
	return l != nil && l.Type() == "veth", err
}

// wasUp says whether a bridge port has ever had a carrier: when its other end was
// up, which happens in the container. Kernels before 4.16 do not tell; then it was.
func wasUp(port netlink.Link) (bool, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = int32(port.Attrs().Index)
	req.AddData(info)
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if errors.Is(err, unix.ENODEV) {
		return true, nil // and is gone
	}
	if err != nil {
		return false, fmt.Errorf("get carrier of %s: %w", port.Attrs().Name, err)
	}
	for _, m := range msgs {
		ad, err := mdl.NewAttributeDecoder(m[unix.SizeofIfInfomsg:])
		if err != nil {
			return false, fmt.Errorf("get carrier of %s: %w", port.Attrs().Name, err)
		}
		for ad.Next() {
			if ad.Type() == unix.IFLA_CARRIER_UP_COUNT {
				return ad.Uint32() > 0, ad.Err()
			}
		}
	}
	return true, nil
}

// unplug removes the endpoint's veth pair. Absent is nil.
func unplug(endpoint string) error {
	l, err := findPort(endpoint)
	if err != nil || l == nil {
		return err
	}
	return removeLink(l)
}

// forgetNeighbours deletes what the host's neighbour table has of the
// endpoint's addresses, so that their next owner is not deaf until it ages.
func forgetNeighbours(br *netlink.Bridge, ep store.Endpoint) error {
	for _, p := range []netip.Prefix{ep.Addr4, ep.Addr6} {
		if !p.IsValid() {
			continue
		}
		err := netlink.NeighDel(&netlink.Neigh{LinkIndex: br.Index, IP: p.Addr().AsSlice()})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget neighbour %s on %s: %w", p.Addr(), br.Name, err)
		}
	}
	return nil
}
