package portmap

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/internal/rtnetlink"
)

// uplinkInterval is how often Check looks for bridges that lead to a LAN: a
// listing of all links, which is not free on a host with thousands.
const uplinkInterval = 30 * time.Second

// uplinkBridges are the bridges that lead to a LAN: those with a physical port,
// and those that a default route goes by.
func uplinkBridges() ([]string, error) {
	links, err := rtnetlink.Dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		if l.Type() == "bridge" {
			names[l.Attrs().Index] = l.Attrs().Name
		}
	}
	up := map[string]bool{}
	for _, l := range links {
		switch l.Type() {
		case "device", "bond", "vlan", "team":
			if name := names[l.Attrs().MasterIndex]; name != "" {
				up[name] = true
			}
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := rtnetlink.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Gw != nil && names[r.LinkIndex] != "" {
				up[names[r.LinkIndex]] = true
			}
		}
	}
	out := make([]string, 0, len(up))
	for name := range up {
		out = append(out, name)
	}
	slices.Sort(out)
	return out, nil
}

func uplinkElements(names []string) (es []nftElem) {
	for _, n := range names {
		es = append(es, nftElem{set: setUplinks, key: string(ifname(n))})
	}
	return es
}

func (m *NFTables) refreshUplinksLocked() error {
	now, err := uplinkBridges()
	if err != nil {
		return fmt.Errorf("look for bridges that lead to a LAN: %w", err)
	}
	m.uplinksRead = time.Now()
	if slices.Equal(now, m.uplinks) {
		return nil
	}
	gone, fresh := difference(uplinkElements(m.uplinks), uplinkElements(now))
	if err := errors.Join(m.conn.delElems(gone), m.conn.addElems(fresh)); err != nil {
		return err
	}
	if err := m.conn.Flush(); err != nil {
		return fmt.Errorf("set the bridges that lead to a LAN: %w", err)
	}
	m.uplinks = now
	return nil
}
