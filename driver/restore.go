package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/internal/rtnetlink"
	"github.com/portolan/portolan/internal/sklookup"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

const (
	// neverJoined is how long an endpoint may take to join, and its interface to
	// be moved into the container. The engine does the one at once, the other
	// after all else that a start takes, volumes of other hosts too; it forgets
	// what was cut short.
	neverJoined = 10 * time.Minute
	// moveIn is how long after its making an interface is not asked after. One
	// that lies on the host then was in the container before. When the daemon
	// begins, one that never was counts as well: its start has probably failed
	// while there was nobody to be told.
	moveIn = 30 * time.Second
	// tombstoneAge is how long the engine may take to delete an endpoint that
	// has left, or died with the machine.
	tombstoneAge = 24 * time.Hour
)

// Restore makes the kernel again what the store says: networks are rebuilt, the
// ports of endpoints that are alive are published, and endpoints that died
// while nobody looked become tombstones. It is called once, when the socket
// listens; calls that came in meanwhile go on when it returns.
//
// Trouble with one network or endpoint is logged and stops nothing else. The
// error is that of Publisher.Restore, and the answer to all calls from then on:
// what they would change is not there.
func (d *Driver) Restore() (err error) {
	defer d.restoreOnce.Do(func() { d.restoreErr = err; close(d.restored) })
	d.ageFuture()
	d.finishHalves()
	nets := d.store.Networks()
	if len(nets) > 0 && d.rebooted(nets) {
		d.forgetSysctls()
	}
	d.warn(d.adoptForwarding(), "look for forwarding that was turned on", "")
	d.warn(d.unforward(), "put back forwarding", "")
	built := d.rebuild(nets)
	live, dead := d.sortOut(built)
	rules := append(d.strays(), d.rulesOf(built)...)
	var runs []portmap.Run
	for _, ep := range live {
		n, ok := built[ep.Network]
		switch {
		case !ok: // its numbers are kept for rebuildLate
			n, _ = d.store.Network(ep.Network)
			ep.Mappings, ep.Parked = nil, keptBy(&ep)
		case !ep.Gateway:
			ep.Mappings = nil
		}
		if len(ep.Mappings)+len(ep.Parked) > 0 {
			pub := portmap.Publication{Target: target(n, ep), Mappings: ep.Mappings}
			runs = append(runs, portmap.Run{Sandbox: ep.Sandbox, Publication: pub, Parked: ep.Parked})
		}
	}
	var gone []portmap.Mapping
	for _, ep := range dead {
		n, _ := d.store.Network(ep.Network)
		gone = append(gone, portmap.Publication{Target: target(n, ep), Mappings: ep.Mappings}.Held()...)
	}
	// Mappers keep the guard over a Load, so that it comes with the rules.
	if err := d.restoreGuard(); err != nil {
		d.log.Error("guard forwarding", "err", err)
	}
	if err := d.pub.Restore(rules, runs, gone); err != nil {
		return fmt.Errorf("restore published ports: %w", err)
	}
	for _, ep := range dead {
		err := d.store.RetireEndpoint(ep.ID, func(e *store.Endpoint) { bury(e, d.clock.now()) })
		d.warn(err, "record the end of an endpoint", ep.ID)
	}
	d.reopen(built, live)
	return nil
}

// ageFuture makes now of every later time in the records: the clock was set back
// before the daemon began.
func (d *Driver) ageFuture() {
	now := d.clock.now()
	for _, ep := range d.store.Endpoints() {
		if !ep.Created.After(now) && !ep.Gone.After(now) {
			continue
		}
		err := d.store.RetireEndpoint(ep.ID, func(e *store.Endpoint) {
			for _, t := range []*time.Time{&e.Created, &e.Gone} {
				if t.After(now) {
					*t = now
				}
			}
		})
		d.warn(err, "record the age of an endpoint", ep.ID)
	}
}

// finishHalves undoes networks whose making was cut short, and finishes the
// removal of those whose removal was.
func (d *Driver) finishHalves() {
	for _, n := range d.store.Networks() {
		if n.Phase == store.Done {
			continue
		}
		for _, ep := range d.store.Endpoints() {
			if ep.Network == n.ID {
				d.warn(unplug(ep.ID), "undo a half-made network", n.ID)
			}
		}
		// There are no rules yet: Publisher.Restore loads those of the others.
		err := d.removeBridge(n)
		if err == nil {
			err = d.store.DeleteNetwork(n.ID)
		}
		d.warn(err, "undo a half-made network", n.ID)
	}
}

// rebooted says whether none of our bridges is there: then nothing else that we
// changed in the kernel is either.
func (d *Driver) rebooted(nets []store.Network) bool {
	return !slices.ContainsFunc(nets, func(n store.Network) bool {
		br, err := findBridge(n)
		return err != nil || br != nil
	})
}

// forgetSysctls forgets what was changed in a kernel that is no more: what is
// set now is somebody else's doing, and not to be put back. The list of reserved
// ports is not among it: who holds long ranges has looked at it, and keeps the record.
func (d *Driver) forgetSysctls() {
	for _, c := range d.store.Sysctls() {
		if c.Path == sklookup.ReservedPorts {
			continue
		}
		d.warn(d.store.DeleteSysctl(c.Path), "forget a sysctl", c.Path)
	}
}

// sortOut tells the endpoints that are alive from those that are dead: the kernel
// removes a veth pair with the container's end of it. Those on a network that is
// not built are left where they are.
func (d *Driver) sortOut(built map[string]store.Network) (live, dead []store.Endpoint) {
	for _, ep := range d.store.Endpoints() {
		if !ep.Gone.IsZero() {
			continue
		}
		if ep.Phase != store.Done {
			d.warn(unplug(ep.ID), "remove a half-made endpoint", ep.ID)
			continue
		}
		alive, err := d.revive(built[ep.Network], ep)
		d.warn(err, "restore an endpoint", ep.ID)
		switch {
		case alive:
			live = append(live, ep)
		case err == nil:
			dead = append(dead, ep)
		}
	}
	return live, dead
}

// strays are the networks of a state that is no more, as their bridges tell of
// them. Nobody knows what they were allowed, so they are closed like internal
// ones, until docker network rm or portolan cleanup removes them.
func (d *Driver) strays() (nets []portmap.Network) {
	links, err := ourLinks()
	d.warn(err, "look for stray interfaces", "")
	for _, l := range links {
		name, alias := l.Attrs().Name, l.Attrs().Alias
		id, isNetwork := strings.CutPrefix(alias, aliasNetwork)
		_, known := d.store.Network(id)
		if !isNetwork {
			_, known = d.store.Endpoint(strings.TrimPrefix(alias, aliasEndpoint))
		}
		if known {
			continue
		}
		d.log.Warn("an interface of an earlier state is left; portolan cleanup removes it", "interface", name, "alias", alias)
		if !isNetwork || l.Type() != "bridge" {
			continue
		}
		d.warn(d.sys.set("ipv4/conf/"+name+"/route_localnet", "0"), "close localhost to a stray network", id)
		n := strayNetwork(id, l)
		n.NoICC = slices.ContainsFunc(links, func(port netlink.Link) bool {
			return port.Attrs().MasterIndex == l.Attrs().Index && port.Attrs().Group == portmap.PortGroup
		})
		nets = append(nets, n)
	}
	return nets
}

// strayNetwork is what the addresses of a bridge tell.
func strayNetwork(id string, br netlink.Link) portmap.Network {
	n := portmap.Network{ID: id, Bridge: br.Attrs().Name, Internal: true}
	addrs, err := rtnetlink.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(br, netlink.FAMILY_ALL) })
	if err != nil {
		return n // closed all the same
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		switch ip = ip.Unmap(); {
		case !ok || ip.IsLinkLocalUnicast():
		case ip.Is4():
			n.Gateway4, n.Subnet4 = ip, netip.PrefixFrom(ip, bits).Masked()
		default:
			n.Gateway6, n.Subnet6 = ip, netip.PrefixFrom(ip, bits).Masked()
		}
	}
	return n
}

// razeStray removes what an earlier state has left of a network. Nothing is nil.
func (d *Driver) razeStray(id string) error {
	links, err := ourLinks()
	if err != nil {
		return err
	}
	var errs []error
	for _, br := range links {
		if br.Attrs().Alias != aliasNetwork+id {
			continue
		}
		for _, port := range links {
			if port.Attrs().MasterIndex == br.Attrs().Index {
				errs = append(errs, removeLink(port))
			}
		}
		errs = append(errs, removeLink(br))
	}
	return errors.Join(append(errs, d.mapper.RemoveNetwork(id))...)
}

// revive says whether the endpoint has its port still, and has it on the
// network's bridge again.
func (d *Driver) revive(n store.Network, ep store.Endpoint) (alive bool, err error) {
	if dead, err := d.isDead(ep, d.clock.now(), moveIn); err != nil {
		return false, err
	} else if dead {
		return false, unplug(ep.ID)
	}
	port, err := findPort(ep.ID)
	if err != nil || port == nil {
		return false, err
	}
	if n.ID == "" {
		return true, nil
	}
	br, err := ownBridge(n)
	if err != nil {
		return true, err
	}
	return true, attach(n, br, port)
}

// reopen does what must wait for the rules.
func (d *Driver) reopen(built map[string]store.Network, live []store.Endpoint) {
	for _, ep := range live {
		if n, ok := built[ep.Network]; ok && n.NoICC {
			// Its port was isolated if there were no rules to keep it apart.
			_, err := d.revive(n, ep)
			d.warn(err, "open a port of a network", n.ID)
		}
	}
	for _, n := range built {
		d.warn(d.openLocalhost(n), "open localhost to a network", n.ID)
		used := slices.ContainsFunc(live, func(ep store.Endpoint) bool { return ep.Network == n.ID })
		if used { // after a reboot the engine goes first: it may turn it on itself
			d.warn(d.forward(n), "turn on forwarding for a network", n.ID)
		}
	}
}

func (d *Driver) restoreGuard() error {
	d.forwarding.Lock()
	defer d.forwarding.Unlock()
	if !slices.ContainsFunc(families[:], d.guarded) {
		return nil
	}
	return d.guard("")
}

func (d *Driver) warn(err error, what, object string) {
	if err != nil {
		d.log.Warn(what, "id", object, "err", err)
	}
}

// isDead says whether an endpoint's container has ended without a Leave. The
// engine sends none where it could not reach the daemon and gave up, nor, to a
// driver that it has not yet asked for anything, for what died with it. starts is
// how long a start may take.
func (d *Driver) isDead(ep store.Endpoint, now time.Time, starts time.Duration) (bool, error) {
	if ep.Sandbox == "" {
		return false, nil
	}
	port, err := findPort(ep.ID)
	if err != nil || port == nil {
		return err == nil, err
	}
	if d.engines.outlived(ep, d.clock) {
		if sandboxGone(ep.Sandbox) {
			return true, nil
		}
		return abandoned(ep.ID)
	}
	since := age(ep.Created, now)
	if since < moveIn {
		return false, nil
	}
	back, err := abandoned(ep.ID)
	if !back || err != nil || since >= starts {
		return back, err
	}
	return wasUp(port)
}

// sandboxGone says whether the engine has removed a sandbox's file, which it
// keeps as long as the sandbox, also while it is away itself. An engine since 29
// that is killed while it starts a container leaves a process of runc in there,
// for good, which keeps the namespace and our interface. Where the folder cannot
// be seen, as by a managed plugin, nothing is known.
func sandboxGone(key string) bool {
	_, err := os.Lstat(key)
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err = os.Lstat(filepath.Dir(key))
	return err == nil
}

// buryDead makes tombstones of the endpoints that are dead at that time.
func (d *Driver) buryDead(ctx context.Context, now time.Time) error {
	var errs []error
	for _, ep := range d.store.Endpoints() {
		if dead, err := d.isDead(ep, now, neverJoined); !dead {
			errs = append(errs, err)
			continue
		}
		_, err := d.teardown(ctx, "bury", endpointRequest{ep.Network, ep.ID}, func(ep store.Endpoint) error {
			if dead, err := d.isDead(ep, now, neverJoined); !dead {
				return err // it has joined meanwhile
			}
			d.log.Info("a container has ended without a word", "endpoint", ep.ID, "network", ep.Network)
			return d.takeOut(ep)
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Reap removes the endpoints that never joined, ten minutes after they were
// created, and tombstones after a day. Endpoints whose container has ended
// without a word become tombstones. What the disk would not take earlier is
// written. Only what has passed by the monotonic clock counts (time.Now has it).
func (d *Driver) Reap(now time.Time) error {
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	now = d.clock.at(now)
	errs := []error{d.buryDead(ctx, now)}
	for _, ep := range d.store.Endpoints() {
		if !d.overdue(ep, now) {
			continue
		}
		_, err := d.teardown(ctx, "reap", endpointRequest{ep.Network, ep.ID}, func(ep store.Endpoint) error {
			if !d.overdue(ep, now) {
				return nil // it has joined meanwhile
			}
			return d.dropEndpoint(ep)
		})
		errs = append(errs, err)
	}
	return errors.Join(append(errs, d.store.Sync())...)
}

func (d *Driver) overdue(ep store.Endpoint, now time.Time) bool {
	if !ep.Gone.IsZero() {
		return age(ep.Gone, now) > tombstoneAge
	}
	return ep.Phase != store.Done && age(ep.Created, now) > neverJoined
}
