package driver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/rtnetlink"
	"github.com/portolan/portolan/internal/sklookup"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// family is an address family, as far as forwarding goes.
type family struct {
	name  string // as in --ipv6
	dir   string // its sysctls are below
	path  string // its switch
	needs func(store.Network) bool
}

var families = [...]family{
	{"IPv4", "ipv4/", "ipv4/ip_forward", func(n store.Network) bool {
		return !n.Internal && n.Subnet4.IsValid() && n.Mode4 != portmap.ModeIsolated
	}},
	{"IPv6", "ipv6/", "ipv6/conf/all/forwarding", func(n store.Network) bool {
		return !n.Internal && n.Subnet6.IsValid() && n.Mode6 != portmap.ModeIsolated
	}},
}

// forward turns on what forwarding n needs and the host has not got.
func (d *Driver) forward(n store.Network) error {
	d.forwarding.Lock()
	defer d.forwarding.Unlock()
	for i, f := range families {
		if !f.needs(n) {
			continue
		}
		if err := d.forwardFamily(i, n); err != nil {
			return fmt.Errorf("turn on %s forwarding: %w", f.name, err)
		}
	}
	return nil
}

func (d *Driver) forwardFamily(i int, n store.Network) error {
	f := families[i]
	now, err := d.sys.read(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("this kernel has no %s", f.name)
	}
	if err != nil || now != "0" {
		return err
	}
	if !d.cfg.IPForward {
		d.log.Warn("forwarding is off, and Portolan may not turn it on: containers reach nothing but this host, and other hosts do not reach them",
			"network", n.ID, "missing", sysctlName(f.path)+"=1")
		return nil
	}
	if d.forwarded[i] {
		return d.sys.set(f.path, "1")
	}
	// The guard stands before the door is opened, and what was there before is
	// known before it is changed.
	if err := d.guard(f.name); err != nil {
		return err
	}
	if err := d.switchOn(f); err != nil {
		// Its guard may stand without a record of the switch.
		return errors.Join(err, d.switchOff(f), d.guard(""))
	}
	d.log.Info("turned on forwarding", "family", f.name)
	return nil
}

func (d *Driver) switchOn(f family) error {
	if f.dir == "ipv6/" {
		if err := d.keepAdvertisedRoutes(); err != nil {
			return err
		}
	}
	along, err := d.changedAlong(f)
	if err != nil {
		return err
	}
	for _, c := range append(along, store.Sysctl{Path: f.path, Old: "0", New: "1"}) {
		if err := d.store.PutSysctl(c); err != nil {
			return err
		}
	}
	return d.sys.set(f.path, "1")
}

// changedAlong returns what the kernel changes, when the switch is turned on
// or off, and would not be as before afterwards.
func (d *Driver) changedAlong(f family) ([]store.Sysctl, error) {
	files, err := filepath.Glob(filepath.Join(d.sys.dir, f.dir, "conf/*/forwarding"))
	if err != nil {
		return nil, err
	}
	var along []store.Sysctl
	keep := func(path, value string) {
		if now, err := d.sys.read(path); err == nil && now == value && path != f.path {
			along = append(along, store.Sysctl{Path: path, Old: value})
		}
	}
	for _, file := range files {
		keep(strings.TrimPrefix(file, d.sys.dir+"/"), "1")
	}
	if f.dir == "ipv4/" {
		keep("ipv4/conf/all/accept_redirects", "0")
	}
	return along, nil
}

// keepAdvertisedRoutes has interfaces with a default route from a router
// advertisement accept more of them although the host forwards: with
// accept_ra=1 it would lose the route.
func (d *Driver) keepAdvertisedRoutes() error {
	routes, err := rtnetlink.Dump(func() ([]netlink.Route, error) {
		return netlink.RouteList(nil, netlink.FAMILY_V6)
	})
	if err != nil {
		return fmt.Errorf("list IPv6 routes: %w", err)
	}
	for _, r := range routes {
		isDefault := r.Dst == nil || r.Dst.IP.IsUnspecified() && isZeroMask(r.Dst.Mask)
		if r.Protocol != unix.RTPROT_RA || !isDefault {
			continue
		}
		hops := []int{r.LinkIndex}
		for _, hop := range r.MultiPath {
			hops = append(hops, hop.LinkIndex)
		}
		for _, index := range hops {
			if err := d.acceptRA(index); err != nil {
				return err
			}
		}
	}
	return nil
}

func isZeroMask(m []byte) bool { return !slices.ContainsFunc(m, func(b byte) bool { return b != 0 }) }

func (d *Driver) acceptRA(index int) error {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil // gone, and its route with it
	}
	path := "ipv6/conf/" + l.Attrs().Name + "/accept_ra"
	if now, err := d.sys.read(path); err != nil || now != "1" {
		return nil
	}
	if err := d.store.PutSysctl(store.Sysctl{Path: path, Old: "1", New: "2"}); err != nil {
		return err
	}
	return d.sys.set(path, "2")
}

// adoptForwarding takes a guard in the kernel for the record of forwarding that
// an earlier process turned on, where that was lost with its state: else nobody
// would guard it, nor turn it off.
func (d *Driver) adoptForwarding() error {
	d.forwarding.Lock()
	defer d.forwarding.Unlock()
	ipv4, ipv6, err := d.mapper.Guarded()
	if err != nil {
		return err
	}
	var errs []error
	for i, on := range []bool{ipv4, ipv6} {
		f := families[i]
		if now, err := d.sys.read(f.path); !on || d.guarded(f) || err != nil || now == "0" {
			continue
		}
		d.log.Warn("forwarding was turned on by an earlier Portolan, whose record of it is lost", "family", f.name)
		errs = append(errs, d.store.PutSysctl(store.Sysctl{Path: f.path, Old: "0", New: "1"}))
	}
	return errors.Join(errs...)
}

// unforward turns off what we turned on and nobody needs any more.
func (d *Driver) unforward() error {
	d.forwarding.Lock()
	defer d.forwarding.Unlock()
	return d.unforwardLocked()
}

// unforwardFor is unforward without a network that goes. It needs nothing until
// stay is called, for others that go meanwhile.
func (d *Driver) unforwardFor(id string) (stay func(), err error) {
	d.forwarding.Lock()
	defer d.forwarding.Unlock()
	if d.going == nil {
		d.going = map[string]bool{}
	}
	d.going[id] = true
	stay = func() {
		d.forwarding.Lock()
		defer d.forwarding.Unlock()
		delete(d.going, id)
	}
	return stay, d.unforwardLocked()
}

func (d *Driver) unforwardLocked() error {
	var errs []error
	for _, f := range families {
		needed := slices.ContainsFunc(d.store.Networks(), func(n store.Network) bool {
			return !d.going[n.ID] && f.needs(n)
		})
		if !needed {
			errs = append(errs, d.switchOff(f))
		}
	}
	return errors.Join(errs...)
}

// switchOff puts back a family's sysctls, last first, and takes away its guard
// where we had set the switch.
func (d *Driver) switchOff(f family) error {
	guarded := d.guarded(f)
	var errs []error
	for _, c := range slices.Backward(d.store.Sysctls()) {
		if !strings.HasPrefix(c.Path, f.dir) || c.Path == sklookup.ReservedPorts {
			continue
		}
		err := d.sys.undo(c)
		if err == nil {
			err = d.store.DeleteSysctl(c.Path)
		}
		errs = append(errs, err)
	}
	if guarded {
		errs = append(errs, d.guard(""))
	}
	return errors.Join(errs...)
}

// guarded says whether the family's forwarding is on because of us.
func (d *Driver) guarded(f family) bool {
	return slices.ContainsFunc(d.store.Sysctls(), func(c store.Sysctl) bool { return c.Path == f.path })
}

// guard has the Mapper drop other people's forwarded traffic of the families
// whose forwarding is on because of us, and of one more.
func (d *Driver) guard(more string) error {
	var on [len(families)]bool
	for i, f := range families {
		on[i] = f.name == more || d.guarded(f)
	}
	if err := d.mapper.Guard(on[0], on[1]); err != nil {
		return fmt.Errorf("guard forwarding: %w", err)
	}
	return nil
}
