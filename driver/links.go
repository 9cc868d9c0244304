package driver

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/internal/fault"
	"github.com/portolan/portolan/internal/rtnetlink"
)

// AliasPrefix begins the alias (IFLA_IFALIAS) of every interface of ours, and of
// no other.
const AliasPrefix = "portolan "

const (
	aliasNetwork  = AliasPrefix + "network "
	aliasEndpoint = AliasPrefix + "endpoint "
)

// findLink returns the interface of that name, or nil.
func findLink(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	return l, nil
}

// isOurs says whether the interface of that name is one of ours.
func isOurs(name string) bool {
	l, err := findLink(name)
	return err == nil && l != nil && strings.HasPrefix(l.Attrs().Alias, AliasPrefix)
}

// removeLink removes an interface. That it is gone already is nil.
func removeLink(l netlink.Link) error {
	err := netlink.LinkDel(l)
	fault.Point("link removed")
	if err == nil {
		return nil
	}
	if now, findErr := findLink(l.Attrs().Name); findErr == nil && (now == nil || now.Attrs().Index != l.Attrs().Index) {
		return nil // its container was faster
	}
	return fmt.Errorf("remove interface %s: %w", l.Attrs().Name, err)
}

// ourLinks returns all interfaces of ours, whatever process made them.
func ourLinks() ([]netlink.Link, error) {
	all, err := rtnetlink.Dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var ours []netlink.Link
	for _, l := range all {
		if strings.HasPrefix(l.Attrs().Alias, AliasPrefix) {
			ours = append(ours, l)
		}
	}
	return ours, nil
}

// Interface is an interface of ours on this host.
type Interface struct {
	Name string
	// Network is the ID of the network whose bridge it is, Endpoint that of the
	// endpoint whose bridge port it is. One of them is "".
	Network, Endpoint string
	// InContainer: the other end of the endpoint's veth pair is in a container,
	// which it keeps reachable.
	InContainer bool
}

// Interfaces lists the interfaces of ours, with or without a daemon.
func Interfaces() ([]Interface, error) {
	links, err := ourLinks()
	if err != nil {
		return nil, err
	}
	ours := make([]Interface, len(links))
	for i, l := range links {
		ours[i].Name = l.Attrs().Name
		id, isPort := strings.CutPrefix(l.Attrs().Alias, aliasEndpoint)
		if !isPort {
			ours[i].Network = strings.TrimPrefix(l.Attrs().Alias, aliasNetwork)
			continue
		}
		dead, err := abandoned(id)
		if err != nil {
			return nil, err
		}
		ours[i].Endpoint, ours[i].InContainer = id, !dead
	}
	return ours, nil
}
