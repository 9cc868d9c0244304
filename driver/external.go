package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// programExternal publishes the ports of the sandbox whose way out the endpoint
// is. CreateEndpoint and Join carry them too, but not reliably, and go to
// endpoints that are no gateway.
func (d *Driver) programExternal(ctx context.Context, r programRequest) (nothing, error) {
	err := d.publish(ctx, r)
	if errors.Is(err, portmap.ErrPortInUse) {
		// The holder may be dead, and nobody have said so; or another call has
		// just found out.
		d.warn(d.buryDead(ctx, d.clock.now()), "look for dead endpoints", r.EndpointID)
		err = d.publish(ctx, r)
	}
	if err != nil {
		return nothing{}, fmt.Errorf("publish ports of endpoint %.12s: %w", r.EndpointID, err)
	}
	return nothing{}, nil
}

func (d *Driver) publish(ctx context.Context, r programRequest) error {
	if err := r.Options.err; err != nil {
		return err
	}
	bindings, exposed := slices.Clone(r.Options.bindings), r.Options.exposed
	release, err := d.hold(ctx, r.endpointRequest, "")
	if err != nil {
		return err
	}
	defer release()
	ep, n, err := d.endpoint(r.endpointRequest)
	if err != nil {
		return err
	}
	if exposed == nil { // not told
		exposed = ep.Exposed
	}
	if ep.Sandbox == "" {
		return errors.New("it has not joined a container; start the container again")
	}
	if n.Internal { // engines since 28 ask for it all the same
		bindings = nil
	}
	t := target(n, ep)
	if err := prepare(bindings, n, t); err != nil {
		return err
	}
	if len(bindings) == 0 && len(ep.Mappings) == 0 {
		_, err := d.store.UpdateEndpoint(ep.ID, func(e *store.Endpoint) {
			e.Exposed, e.Gateway, e.Mappings = exposed, !n.Internal, nil
		})
		return err
	}
	ep.Exposed, ep.Gateway = exposed, !n.Internal
	_, err = d.pub.Publish(ep.Sandbox, t, bindings, d.recordOf(ep))
	if n.HostBinding4.IsValid() && errors.Is(err, unix.EADDRNOTAVAIL) {
		err = fmt.Errorf("%w (ports without a host address are published on %s, as the network was created with -o %s)", err, n.HostBinding4, optHostBinding)
	}
	return err
}

// recordOf writes down what ep publishes. In the same write, what other endpoints
// of its sandbox published, or keep for it, goes: an engine that was restarted
// does not revoke it before.
func (d *Driver) recordOf(ep store.Endpoint) portmap.Record {
	return func(ms []portmap.Mapping) (undo func() error, err error) {
		before := d.store.EndpointsOf(ep.Sandbox)
		err = d.store.UpdateSandbox(ep.Sandbox, func(e *store.Endpoint) {
			switch {
			case e.ID == ep.ID:
				e.Exposed, e.Gateway, e.Mappings, e.Parked = ep.Exposed, ep.Gateway, ms, nil
			case len(e.Mappings)+len(e.Parked) > 0:
				publishNothing(e)
			}
		})
		return func() error {
			return d.store.UpdateSandbox(ep.Sandbox, func(e *store.Endpoint) {
				for _, b := range before {
					if e.ID == b.ID {
						e.Exposed, e.Gateway, e.Mappings, e.Parked = b.Exposed, b.Gateway, b.Mappings, b.Parked
					}
				}
			})
		}, err
	}
}

// revokeExternal unpublishes; the host ports stay the sandbox's. Unknown is
// success.
func (d *Driver) revokeExternal(ctx context.Context, r endpointRequest) (nothing, error) {
	return d.teardown(ctx, "unpublish ports of", r, func(ep store.Endpoint) error {
		err := d.store.RetireEndpoint(ep.ID, func(e *store.Endpoint) {
			e.Gateway, e.Mappings, e.Parked = false, nil, keptBy(e)
		})
		return errors.Join(d.pub.Unpublish(ep.ID), err)
	})
}

// keptBy is what e's sandbox keeps if e publishes no longer.
func keptBy(e *store.Endpoint) []portmap.Mapping {
	if len(e.Mappings) > 0 {
		return e.Mappings
	}
	return e.Parked
}

func publishNothing(e *store.Endpoint) { e.Gateway, e.Mappings, e.Parked = false, nil, nil }

// prepare fills in the network's default host address, and refuses host
// addresses that only clients of the other family have a use for: from other
// hosts they would reach the container by the proxy, as the gateway's address.
func prepare(bs []portmap.PortBinding, n store.Network, t portmap.Target) error {
	for i := range bs {
		b := &bs[i]
		if !b.HostIP.IsValid() {
			b.HostIP = n.HostBinding4
		}
		if !b.HostIP.IsValid() || b.HostIP.IsLoopback() || t.ProxyRemote {
			continue
		}
		if has := familyAddr(t, b.HostIP); !has.IsValid() {
			return fmt.Errorf("publish %s: the container has no %s address; publish on an address of the other family, give the network %[2]s, or create it with -o %s=true (other hosts then reach the container under the gateway's address)",
				b, familyName(b.HostIP), optProxyRemote)
		}
	}
	return nil
}

func familyAddr(t portmap.Target, like netip.Addr) netip.Addr {
	if like.Is4() {
		return t.IPv4
	}
	return t.IPv6
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
