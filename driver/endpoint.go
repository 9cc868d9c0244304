package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// createEndpoint records an endpoint; the kernel hears of it in Join. The
// engine does not take back an endpoint whose creation failed, or was cut short.
func (d *Driver) createEndpoint(ctx context.Context, r createEndpointRequest) (createEndpointResponse, error) {
	d.meetEngine(ctx)
	resp, err := d.addEndpoint(ctx, r)
	if err != nil {
		return resp, fmt.Errorf("create endpoint %.12s: %w", r.EndpointID, err)
	}
	return resp, nil
}

func (d *Driver) addEndpoint(ctx context.Context, r createEndpointRequest) (resp createEndpointResponse, err error) {
	if !validID(r.EndpointID) {
		return resp, fmt.Errorf("%q is not an endpoint ID", r.EndpointID)
	}
	if err := refuseOwn(slices.Values(r.Options.names), "container", "-o"); err != nil {
		return resp, err
	}
	release, err := d.hold(ctx, r.endpointRequest, "")
	if err != nil {
		return resp, err
	}
	defer release()
	n, err := d.network(r.NetworkID)
	if err != nil {
		return resp, err
	}
	if _, ok := d.store.Endpoint(r.EndpointID); ok {
		return resp, errors.New("it is there already")
	}
	ep := store.Endpoint{ID: r.EndpointID, Network: n.ID, Phase: store.Intent, Created: d.clock.now()}
	if ep.Addr4, ep.Addr6, err = parseAddrs(n, r.Interface); err != nil {
		return resp, err
	}
	if ep.Exposed, err = r.Options.exposed, r.Options.err; err != nil {
		return resp, err
	}
	ep.MAC = r.Interface.MacAddress
	if ep.MAC == "" {
		ep.MAC = endpointMAC(ep).String()
		resp.Interface.MacAddress = ep.MAC
	} else if mac, err := net.ParseMAC(ep.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 || [6]byte(mac) == [6]byte{} {
		return resp, fmt.Errorf("%q is not a MAC address that an interface can have", ep.MAC)
	}
	return resp, d.store.PutEndpoint(ep)
}

// endpointMAC follows the address, so that a container that is replaced under
// the same address is not deaf until its neighbours' entries age.
func endpointMAC(ep store.Endpoint) net.HardwareAddr {
	if ep.Addr4.IsValid() {
		return addrMAC(ep.Addr4.Addr())
	}
	return addrMAC(ep.Addr6.Addr())
}

// deleteEndpoint forgets an endpoint, and all it still has. Unknown is success.
func (d *Driver) deleteEndpoint(ctx context.Context, r endpointRequest) (nothing, error) {
	return d.teardown(ctx, "delete", r, d.dropEndpoint)
}

// dropEndpoint is deleteEndpoint under the locks.
func (d *Driver) dropEndpoint(ep store.Endpoint) error {
	return errors.Join(d.takeOut(ep), d.store.DeleteEndpoint(ep.ID))
}

// teardown calls do for an endpoint, under its locks. Unknown is success.
func (d *Driver) teardown(ctx context.Context, what string, r endpointRequest, do func(store.Endpoint) error) (nothing, error) {
	release, err := d.hold(ctx, r, "")
	if err == nil {
		defer release()
		switch ep, ok := d.store.Endpoint(r.EndpointID); {
		case !ok: // of an earlier state, perhaps
			err = unplug(r.EndpointID)
		case ep.Network == r.NetworkID:
			err = do(ep)
		}
	}
	if err != nil {
		return nothing{}, fmt.Errorf("%s endpoint %.12s: %w", what, r.EndpointID, err)
	}
	return nothing{}, nil
}

// endpoint returns an endpoint and its network.
func (d *Driver) endpoint(r endpointRequest) (store.Endpoint, store.Network, error) {
	n, err := d.network(r.NetworkID)
	if err != nil {
		return store.Endpoint{}, n, err
	}
	ep, ok := d.store.Endpoint(r.EndpointID)
	if !ok || ep.Network != r.NetworkID {
		return ep, n, errUnknownEndpoint
	}
	return ep, n, nil
}

var errUnknownEndpoint = errors.New("it is not known to Portolan; stop the container and start it again")

// Port bindings and exposed ports as libnetwork's own types have them.
type (
	portBinding struct {
		Proto                 portmap.Proto
		IP                    netip.Addr
		Port                  uint16
		HostIP                netip.Addr
		HostPort, HostPortEnd uint16
	}
	transportPort struct {
		Proto portmap.Proto
		Port  uint16
	}
)

// operInfo answers with what libnetwork's own bridge driver would: the real
// host ports, one by one. Engines to this day drop the answer of a remote
// driver, for want of a type, but only when they have decoded it: so a range of
// portmap.BlockMin ports or more is one binding, and not among the exposed ports.
func (d *Driver) operInfo(_ context.Context, r endpointRequest) (operInfoResponse, error) {
	ep, n, err := d.endpoint(r)
	if err != nil {
		return operInfoResponse{}, fmt.Errorf("inspect endpoint %.12s: %w", r.EndpointID, err)
	}
	exposed := []transportPort{}
	for _, r := range ep.Exposed {
		if r.Len() >= portmap.BlockMin {
			continue
		}
		for p := range r.All() {
			exposed = append(exposed, transportPort{p.Proto, p.Port})
		}
	}
	return operInfoResponse{Value: map[string]any{
		keyPortMap: expand(target(n, ep), ep.Mappings),
		keyExposed: exposed,
	}}, nil
}

// expand returns every port of ms by itself, but long ranges as they are. A mapping for all of the host's
// addresses stands there once for each family that clients of other hosts can
// use.
func expand(t portmap.Target, ms []portmap.Mapping) []portBinding {
	all := []portBinding{}
	for _, m := range ms {
		for _, host := range t.HostIPs(m) {
			ip := t.IPv4
			if !ip.IsValid() || host.Is6() && t.IPv6.IsValid() {
				ip = t.IPv6
			}
			if m.Len() >= portmap.BlockMin {
				all = append(all, portBinding{m.Proto, ip, m.Port, host, m.HostPort, m.HostPortEnd})
				continue
			}
			for i := range uint16(m.Len()) {
				hp := m.HostPort + i
				all = append(all, portBinding{m.Proto, ip, m.Port + i, host, hp, hp})
			}
		}
	}
	return all
}

// target is where the endpoint's mappings lead.
func target(n store.Network, ep store.Endpoint) portmap.Target {
	return portmap.Target{
		Endpoint:    ep.ID,
		Network:     n.ID,
		IPv4:        ep.Addr4.Addr(),
		IPv6:        ep.Addr6.Addr(),
		Routed4:     n.Mode4 == portmap.ModeRouted,
		Routed6:     n.Mode6 == portmap.ModeRouted,
		ProxyRemote: n.ProxyRemote,
		MaxFlows:    n.MaxFlows,
	}
}
