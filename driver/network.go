package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/internal/rtnetlink"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// gwAllocCheck tells the engine whether to set an address aside for the
// bridge. The conditions are those of Docker's bridge driver.
func (d *Driver) gwAllocCheck(_ context.Context, r gwAllocCheckRequest) (gwAllocCheckResponse, error) {
	n, err := parseOptions(r.Options)
	if err != nil {
		return gwAllocCheckResponse{}, fmt.Errorf("create network: %w", err)
	}
	return gwAllocCheckResponse{
		SkipIPv4: n.Mode4 == portmap.ModeIsolated || n.InhibitIPv4 && n.Internal,
		SkipIPv6: n.Mode6 == portmap.ModeIsolated,
	}, nil
}

// createNetwork makes a network. One that is there already and the same is
// made again, which changes nothing: Swarm may ask twice.
func (d *Driver) createNetwork(ctx context.Context, r createNetworkRequest) (nothing, error) {
	d.meetEngine(ctx)
	n, err := parseNetwork(r)
	if err == nil {
		err = d.addNetwork(ctx, n)
	}
	if err != nil {
		return nothing{}, fmt.Errorf("create network %.12s: %w", r.NetworkID, err)
	}
	return nothing{}, nil
}

func (d *Driver) addNetwork(ctx context.Context, n store.Network) error {
	release, err := d.networks.own(ctx, n.ID)
	if err != nil {
		return err
	}
	defer release()

	n.Created = d.clock.now()
	old, exists := d.store.Network(n.ID)
	if exists {
		n.Created = old.Created
		if !sameNetwork(n, old) {
			return errors.New("it is there already, with other settings")
		}
		d.admitting.Lock()
		d.admitLocked(n.ID)
		d.admitting.Unlock()
	} else if err := d.admit(ctx, n); err != nil {
		return err
	}
	err = d.buildNetwork(n)
	if err == nil && !exists {
		err = ctx.Err() // nobody waits for it any more: the engine has no such network
	}
	if err == nil {
		n.Phase = store.Done
		err = d.store.PutNetwork(n)
	}
	if err != nil && !exists {
		return errors.Join(err, d.razeNetwork(n))
	}
	return err
}

// buildNetwork brings into the kernel what the record says.
func (d *Driver) buildNetwork(n store.Network) error {
	if err := d.raiseNetwork(n); err != nil {
		return err
	}
	return d.forward(n)
}

// raiseNetwork is buildNetwork without forwarding: its rules, and then what they
// close.
func (d *Driver) raiseNetwork(n store.Network) error {
	if err := d.mapper.AddNetwork(n.Network); err != nil {
		return fmt.Errorf("set its rules: %w", err)
	}
	if err := d.makeBridge(n); err != nil {
		return err
	}
	return d.openLocalhost(n)
}

// admit checks n against everything that is there, and puts its record.
func (d *Driver) admit(ctx context.Context, n store.Network) error {
	d.admitting.Lock()
	defer d.admitting.Unlock()
	if err := ctx.Err(); err != nil {
		return err // it has waited for too long
	}
	for _, old := range d.store.Networks() {
		err := overlap(n, old)
		if err == nil {
			continue
		}
		if gaveWay, dropErr := d.giveWay(ctx, old); !gaveWay || dropErr != nil {
			return errors.Join(err, dropErr)
		}
	}
	known := d.store.Networks()
	for _, old := range known {
		if old.Bridge == n.Bridge {
			return fmt.Errorf("bridge name %s is taken by network %.12s; choose another with -o %s=NAME", n.Bridge, old.ID, optBridgeName)
		}
	}
	if _, err := findBridge(n); err != nil {
		return err
	}
	if err := checkHostAddrs(n, known); err != nil {
		return err
	}
	d.admitLocked(n.ID)
	return d.store.PutNetwork(n)
}

// admitLocked notes who has asked for a network.
func (d *Driver) admitLocked(id string) {
	if d.admitted == nil {
		d.admitted = make(map[string]time.Time)
	}
	maps.DeleteFunc(d.admitted, func(id string, _ time.Time) bool {
		_, there := d.store.Network(id)
		return !there
	})
	d.admitted[id] = d.engines.newest()
}

// giveWay removes a network that the engine has forgotten, and says whether it
// was one. An engine forgets a network whose creation or removal a dying daemon
// did not answer, and gives its pool to the next. So it has no endpoint, and an
// earlier process made it, of ours or the engine's; or this one has told the
// engine that it could not, and not everything could be undone.
func (d *Driver) giveWay(ctx context.Context, old store.Network) (forgotten bool, err error) {
	if d.knownLocked(old) {
		return false, nil
	}
	release, err := d.networks.own(ctx, old.ID)
	if err != nil {
		return false, err
	}
	defer release()
	switch now, there := d.store.Network(old.ID); {
	case !there:
		return true, nil
	case d.knownLocked(now):
		return false, nil // it was being made
	}
	used := slices.ContainsFunc(d.store.Endpoints(), func(ep store.Endpoint) bool { return ep.Network == old.ID && ep.Gone.IsZero() })
	if used {
		return false, nil
	}
	d.log.Warn("a network without containers gives way to another one with its pool: the engine has forgotten it", "network", old.ID)
	return true, d.dropLocked(ctx, old)
}

// knownLocked says whether the engine that is there was told that it has the
// network. The caller has admitting.
func (d *Driver) knownLocked(n store.Network) bool {
	began, ok := d.admitted[n.ID]
	return ok && n.Phase == store.Done && began.Equal(d.engines.newest())
}

// checkHostAddrs refuses pools with an address of this host in them, other
// than on the bridges of networks we know, whose pools have been compared.
func checkHostAddrs(n store.Network, known []store.Network) error {
	ours := make(map[int]bool)
	for _, k := range append(known, n) {
		if br, err := findBridge(k); err == nil && br != nil {
			ours[br.Index] = true
		}
	}
	addrs, err := rtnetlink.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list this host's addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		if !ok || ours[a.LinkIndex] {
			continue
		}
		for _, subnet := range []netip.Prefix{n.Subnet4, n.Subnet6} {
			if !subnet.IsValid() || !subnet.Contains(ip) {
				continue
			}
			name := linkName(a.LinkIndex)
			if isOurs(name) {
				return fmt.Errorf("pool %s contains %s, of interface %s, which an earlier Portolan has left; remove it with portolan cleanup, or choose another pool with %s", subnet, ip, name, optSubnet)
			}
			return fmt.Errorf("pool %s contains %s, an address of this host (interface %s); choose another with %s", subnet, ip, name, optSubnet)
		}
	}
	return nil
}

func linkName(index int) string {
	if l, err := netlink.LinkByIndex(index); err == nil {
		return l.Attrs().Name
	}
	return fmt.Sprintf("number %d", index)
}

// sameNetwork compares all but the phase.
func sameNetwork(a, b store.Network) bool {
	a.Phase, a.Created = b.Phase, b.Created
	return reflect.DeepEqual(a, b)
}

// deleteNetwork removes a network and what is left of its endpoints. Unknown
// is success.
func (d *Driver) deleteNetwork(ctx context.Context, r networkRequest) (nothing, error) {
	if err := d.dropNetwork(ctx, r.NetworkID); err != nil {
		return nothing{}, fmt.Errorf("delete network %.12s: %w", r.NetworkID, err)
	}
	return nothing{}, nil
}

func (d *Driver) dropNetwork(ctx context.Context, id string) error {
	release, err := d.networks.own(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	n, ok := d.store.Network(id)
	if !ok {
		return d.razeStray(id)
	}
	return d.dropLocked(ctx, n)
}

// dropLocked is dropNetwork under the network's lock.
func (d *Driver) dropLocked(ctx context.Context, n store.Network) error {
	// If this is cut short, the next start goes on with it.
	if err := d.store.RetireNetwork(n.ID); err != nil {
		return err
	}
	for _, ep := range d.store.Endpoints() {
		if ep.Network != n.ID {
			continue
		}
		if err := d.dropOrphan(ctx, ep); err != nil {
			return err
		}
	}
	return d.razeNetwork(n)
}

// dropOrphan removes an endpoint whose network's lock is the caller's.
func (d *Driver) dropOrphan(ctx context.Context, ep store.Endpoint) error {
	if ep.Sandbox != "" {
		release, err := d.sandboxes.own(ctx, ep.Sandbox)
		if err != nil {
			return err
		}
		defer release()
	}
	return d.dropEndpoint(ep)
}

// razeNetwork takes a network without endpoints out of kernel and store. What
// cannot be removed keeps its record, so that one can try again.
func (d *Driver) razeNetwork(n store.Network) error {
	// The rules go last: they guard what is still open. What cannot be closed
	// keeps a record of its own.
	stay, err := d.unforwardFor(n.ID)
	defer stay()
	d.warn(err, "put back forwarding", n.ID)
	if err := d.removeBridge(n); err != nil {
		return err
	}
	if err := d.mapper.RemoveNetwork(n.ID); err != nil {
		return err
	}
	return d.store.DeleteNetwork(n.ID)
}

// network returns a network that endpoints may be put on.
func (d *Driver) network(id string) (store.Network, error) {
	n, ok := d.store.Network(id)
	if !ok {
		return n, fmt.Errorf("network %.12s is not known to Portolan; remove it with docker network rm and create it again", id)
	}
	if n.Phase != store.Done {
		return n, fmt.Errorf("network %.12s is not finished or half removed; remove it with docker network rm and create it again", id)
	}
	return n, nil
}
