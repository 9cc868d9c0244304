package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/rtnetlink"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// repairLimit is how long a repair may wait for calls that are at the same
// network or endpoint.
const repairLimit = 3 * time.Second

// view is what the kernel has of interfaces, at one time.
type view struct {
	links map[string]netlink.Link
	names map[int]string
	addrs map[int][]netip.Prefix
	ports map[int]portMode
	apart func() bool // portmap.PortsApart, asked once, where a network wants to know
}

func takeView() (view, error) {
	v := view{
		links: map[string]netlink.Link{}, names: map[int]string{}, addrs: map[int][]netip.Prefix{},
		apart: sync.OnceValue(portmap.PortsApart),
	}
	links, err := rtnetlink.Dump(netlink.LinkList)
	if err != nil {
		return v, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		v.links[l.Attrs().Name], v.names[l.Attrs().Index] = l, l.Attrs().Name
	}
	addrs, err := rtnetlink.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return v, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if ok {
			v.addrs[a.LinkIndex] = append(v.addrs[a.LinkIndex], netip.PrefixFrom(ip.Unmap(), bits))
		}
	}
	v.ports, err = portModes()
	return v, err
}

// FirewallRules is what Check calls the Mapper's rules.
const FirewallRules = "firewall rules"

// Check finds what somebody else has changed of what the Driver has made, puts
// it back and says what that was, a few words each. Rules come first: where they
// cannot be had, nothing else is touched, so that no bridge and no setting opens
// what they close. With links, it also looks at bridges and their ports; without,
// only at settings, which is cheap.
//
// What cannot be put back is an error as long as it lasts, or, for a container
// whose interface was deleted, in Cut. It is called after Restore, and not
// concurrently.
func (d *Driver) Check(links bool) (repaired []string, err error) {
	ruled, err := d.mapper.Check()
	if ruled {
		repaired = append(repaired, FirewallRules)
	}
	if err != nil {
		return repaired, err
	}
	var errs []error
	var nets []store.Network
	for _, n := range d.store.Networks() {
		if n.Phase == store.Done {
			nets = append(nets, n)
		}
	}
	if links && len(nets) > 0 {
		did, err := d.checkLinks(nets)
		repaired, errs = append(repaired, did...), append(errs, err)
	}
	errs = append(errs, d.missForwarding(nets))
	for _, n := range nets {
		did, err := d.checkSettings(n)
		repaired, errs = append(repaired, did...), append(errs, err)
	}
	return repaired, errors.Join(errs...)
}

// checkLinks looks without a lock, which on a host that is well is all it does.
func (d *Driver) checkLinks(nets []store.Network) (repaired []string, err error) {
	repaired, late := d.rebuildLate()
	errs := []error{late}
	nets = slices.DeleteFunc(slices.Clone(nets), func(n store.Network) bool { return d.unbuilt[n.ID] })
	eps := d.store.Endpoints() // before the view: what joins meanwhile is in order
	v, err := takeView()
	if err != nil {
		return repaired, errors.Join(late, err)
	}
	changed := map[string]bool{} // networks
	for _, n := range nets {
		what := v.bridgeDrift(n)
		if what == "" {
			continue
		}
		changed[n.ID] = true
		did, err := d.repairBridge(n, what, v)
		if did {
			repaired = append(repaired, fmt.Sprintf("bridge %s: %s", n.Bridge, what))
		}
		errs = append(errs, err)
	}
	for _, ep := range eps {
		i := slices.IndexFunc(nets, func(n store.Network) bool { return n.ID == ep.Network })
		if i < 0 || !joined(ep) || !changed[ep.Network] && v.portDrift(nets[i], ep) == "" {
			continue
		}
		what, err := d.repairPort(nets[i], ep)
		if what != "" {
			repaired = append(repaired, what)
		}
		errs = append(errs, err)
	}
	return repaired, errors.Join(errs...)
}

// joined says whether the endpoint should have a port on its bridge.
func joined(ep store.Endpoint) bool {
	return ep.Gone.IsZero() && ep.Phase == store.Done && ep.Sandbox != ""
}

// bridgeDrift says what is wrong with a network's bridge, "" for nothing.
func (v view) bridgeDrift(n store.Network) string {
	l := v.links[n.Bridge]
	br, ok := l.(*netlink.Bridge)
	switch {
	case l == nil:
		return "it was deleted"
	case !ok || br.Alias != aliasNetwork+n.ID:
		return "it is another interface"
	case br.RawFlags&unix.IFF_UP == 0:
		return "it was set down"
	case !bytes.Equal(br.HardwareAddr, bridgeMAC(n)):
		return "its MAC address was changed"
	case n.MTU != 0 && br.MTU != n.MTU:
		return "its MTU was changed"
	}
	for _, p := range bridgeAddrs(n) {
		if !slices.Contains(v.addrs[br.Index], p) {
			return fmt.Sprintf("its address %s was removed", p)
		}
	}
	if v.lacksLinkLocal(n, br) {
		return "its link-local address was removed"
	}
	return ""
}

// lacksLinkLocal: the kernel gives a link-local address to what has a carrier,
// and not again to what has lost it.
func (v view) lacksLinkLocal(n store.Network, br *netlink.Bridge) bool {
	return n.Gateway6.IsValid() && br.OperState == netlink.OperUp &&
		!slices.ContainsFunc(v.addrs[br.Index], func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() && p.Addr().Is6() })
}

// giveLinkLocal makes the address that the kernel would (RFC 4291, appendix A).
func giveLinkLocal(br *netlink.Bridge) error {
	mac := br.HardwareAddr
	ip := net.IP{0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrReplace(br, a); err != nil {
		return fmt.Errorf("add address %s to %s: %w", ip, br.Name, err)
	}
	return nil
}

// repairBridge makes a bridge what it was, without localhost: that is
// checkSettings's.
func (d *Driver) repairBridge(n store.Network, what string, v view) (did bool, err error) {
	for name, l := range v.links {
		if name != n.Bridge && l.Attrs().Alias == aliasNetwork+n.ID && v.links[n.Bridge] == nil {
			return false, fmt.Errorf("bridge %s was renamed; give it its name again: ip link set %s name %[1]s", n.Bridge, name)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), repairLimit)
	defer cancel()
	release, err := d.networks.share(ctx, n.ID)
	if err != nil {
		return false, err
	}
	defer release()
	if now, ok := d.store.Network(n.ID); !ok || now.Phase != store.Done {
		return false, nil // it has been removed meanwhile
	}
	if err := d.makeBridge(n); err != nil {
		return false, fmt.Errorf("repair bridge %s (%s): %w", n.Bridge, what, err)
	}
	if br, ok := v.links[n.Bridge].(*netlink.Bridge); ok && v.lacksLinkLocal(n, br) {
		if err := giveLinkLocal(br); err != nil {
			return false, err
		}
	}
	return true, nil
}

// portDrift says what is wrong with an endpoint's bridge port, "" for nothing.
func (v view) portDrift(n store.Network, ep store.Endpoint) string {
	name, _ := vethNames(ep.ID)
	port := v.links[name]
	switch {
	case port == nil || port.Type() != "veth":
		return "it was deleted"
	case v.names[port.Attrs().MasterIndex] != n.Bridge:
		return "it was taken off its bridge"
	case port.Attrs().RawFlags&unix.IFF_UP == 0:
		return "it was set down"
	case n.NoICC && port.Attrs().Group != portmap.PortGroup:
		return "it was taken out of the group of closed ports"
	case v.ports[port.Attrs().Index] != wantedMode(n, v.apart):
		return "its hairpin mode or its isolation was changed"
	}
	return ""
}

// repairPort puts an endpoint's port back on its bridge. One that was deleted
// has taken the container's interface along: the endpoint is buried, which gives
// its ports back.
func (d *Driver) repairPort(n store.Network, ep store.Endpoint) (repaired string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), repairLimit)
	defer cancel()
	_, err = d.teardown(ctx, "repair", endpointRequest{ep.Network, ep.ID}, func(ep store.Endpoint) error {
		if !joined(ep) {
			return nil // it has left meanwhile
		}
		v, err := takeView()
		if err != nil {
			return err
		}
		what := v.portDrift(n, ep)
		if what == "" {
			return nil
		}
		name, _ := vethNames(ep.ID)
		port, err := findPort(ep.ID)
		if err != nil {
			return err
		}
		if port == nil {
			d.noteCut(ep)
			return d.takeOut(ep)
		}
		br, err := ownBridge(n)
		if err != nil {
			return err
		}
		if err := attach(n, br, port); err != nil {
			return err
		}
		repaired = fmt.Sprintf("port %s of bridge %s: %s", name, n.Bridge, what)
		return nil
	})
	return repaired, err
}

// checkSettings puts back what a network needs below /proc/sys.
func (d *Driver) checkSettings(n store.Network) (repaired []string, err error) {
	wrong := d.settingsDrift(n)
	if len(wrong) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), repairLimit)
	defer cancel()
	release, err := d.networks.share(ctx, n.ID)
	if err != nil {
		return nil, err
	}
	defer release()
	if now, ok := d.store.Network(n.ID); !ok || now.Phase != store.Done {
		return nil, nil
	}
	if br, err := findBridge(n); err != nil || br == nil {
		return nil, err // its repair is next
	}
	var errs []error
	before := map[string]string{} // one change may be another's too
	wrong = d.settingsDrift(n)
	for _, path := range wrong {
		before[path], _ = d.sys.read(path)
	}
	for _, path := range wrong {
		was := before[path]
		switch i := switchOf(path); {
		case i >= 0:
			err = d.forward(n)
		default:
			err = d.sys.set(path, bridgeSettings(n, d.sys)[path])
		}
		now, _ := d.sys.read(path)
		if err == nil && now != was {
			repaired = append(repaired, sysctlName(path)+" was "+was)
		}
		errs = append(errs, err)
	}
	return repaired, errors.Join(errs...)
}

// settingsDrift are the settings that are not as n needs them.
func (d *Driver) settingsDrift(n store.Network) (wrong []string) {
	for path, want := range bridgeSettings(n, d.sys) {
		if now, err := d.sys.read(path); err == nil && now != want {
			wrong = append(wrong, path)
		}
	}
	for _, f := range families {
		if now, err := d.sys.read(f.path); f.needs(n) && err == nil && now == "0" && d.forwards(n) {
			wrong = append(wrong, f.path)
		}
	}
	slices.Sort(wrong)
	return wrong
}

// forwards says whether forwarding is kept on for n: where it may be turned on
// at all, and something runs on the network. Others get it when they join.
func (d *Driver) forwards(n store.Network) bool {
	if !d.cfg.IPForward {
		return false
	}
	return slices.ContainsFunc(d.store.Endpoints(), func(ep store.Endpoint) bool { return ep.Network == n.ID && joined(ep) })
}

// missForwarding notes whose doing it is that the host forwards. What it did
// before us, or by somebody else, is put back as it was, for everybody; what is
// on by us comes back with its guard, and so does what somebody has turned off
// while nothing of ours was running. Who does not let us turn it on is told that
// somebody has turned it off.
func (d *Driver) missForwarding(nets []store.Network) error {
	d.forwarding.Lock()
	defer d.forwarding.Unlock()
	var errs []error
	for i, f := range families {
		now, err := d.sys.read(f.path)
		switch {
		case err != nil:
		case !slices.ContainsFunc(nets, f.needs):
			d.forwarded[i] = false
		case now != "0":
			d.forwarded[i] = !d.guarded(f)
		case d.cfg.IPForward:
			d.forwarded[i] = d.forwarded[i] && slices.ContainsFunc(nets, func(n store.Network) bool { return f.needs(n) && d.forwards(n) })
		case d.forwarded[i] || d.guarded(f):
			errs = append(errs, fmt.Errorf("%s was set to 0, and Portolan may not change it: containers reach nothing but this host, and other hosts do not reach them", sysctlName(f.path)))
		}
	}
	return errors.Join(errs...)
}

// switchOf is the family whose switch a setting is, or -1.
func switchOf(path string) int {
	return slices.IndexFunc(families[:], func(f family) bool { return f.path == path })
}

// bridgeSettings are those of n's bridge that are set when it is made, and its
// forwarding where the host forwards.
func bridgeSettings(n store.Network, sys sysctls) map[string]string {
	v4, v6 := "ipv4/conf/"+n.Bridge+"/", "ipv6/conf/"+n.Bridge+"/"
	want := map[string]string{}
	if opensLocalhost(n) {
		want[v4+"route_localnet"] = "1"
	}
	if n.Gateway6.IsValid() {
		want[v6+"disable_ipv6"], want[v6+"accept_dad"], want[v6+"accept_ra"] = "0", "0", "0"
	} else {
		want[v6+"disable_ipv6"] = "1"
	}
	for _, f := range families {
		if now, err := sys.read(f.path); f.needs(n) && err == nil && now == "1" {
			want[f.dir+"conf/"+n.Bridge+"/forwarding"] = "1"
		}
	}
	return want
}

// cutOff is an endpoint whose container runs without an interface.
type cutOff struct{ sandbox, name string }

// noteCut says that a container is cut off, where it is not the container that
// has ended: the engine keeps a sandbox's file as long as the sandbox. A managed
// plugin does not see it.
func (d *Driver) noteCut(ep store.Endpoint) {
	name := fmt.Sprintf("endpoint %.12s", ep.ID)
	if ep.Owner != nil && ep.Owner.ContainerName != "" {
		name = fmt.Sprintf("container %s (%s)", ep.Owner.ContainerName, name)
	}
	if _, err := os.Stat(ep.Sandbox); err != nil {
		d.log.Info("a container has ended without a word, or its interface was deleted", "endpoint", ep.ID, "network", ep.Network)
		return
	}
	d.log.Error("a container is cut off: its interface was deleted, which cannot be undone; restart the container", "container", name, "network", ep.Network)
	d.cutMu.Lock()
	defer d.cutMu.Unlock()
	if d.cut == nil {
		d.cut = map[string]cutOff{}
	}
	d.cut[ep.ID] = cutOff{ep.Sandbox, name}
}

// Cut are the containers that run without their interface, a line each: it was
// deleted while they ran. They are there until they are stopped.
func (d *Driver) Cut() (lines []string) {
	d.cutMu.Lock()
	defer d.cutMu.Unlock()
	for id, c := range d.cut {
		_, known := d.store.Endpoint(id)
		if _, err := os.Stat(c.sandbox); !known || err != nil {
			delete(d.cut, id)
			continue
		}
		lines = append(lines, c.name+" is cut off: its interface was deleted; restart the container")
	}
	slices.Sort(lines)
	return lines
}
