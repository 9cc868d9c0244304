package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/portolan/portolan/internal/store"
)

// join makes the endpoint's interface, for the engine to move into the sandbox.
// A second Join of the same sandbox makes it again: the answer to the first one
// was lost.
func (d *Driver) join(ctx context.Context, r joinRequest) (*network.JoinResponse, error) {
	resp, err := d.plugIn(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("join endpoint %.12s: %w", r.EndpointID, err)
	}
	return resp, nil
}

func (d *Driver) plugIn(ctx context.Context, r joinRequest) (*network.JoinResponse, error) {
	release, err := d.hold(ctx, r.endpointRequest, r.SandboxKey)
	if err != nil {
		return nil, err
	}
	defer release()
	ep, n, err := d.endpoint(r.endpointRequest)
	if err != nil {
		return nil, err
	}
	if ep.Sandbox != "" && ep.Sandbox != r.SandboxKey {
		return nil, fmt.Errorf("it has joined %s; stop the container and start it again", ep.Sandbox)
	}
	if d.cfg.IPForward { // the machine may have been restarted
		if err := d.forward(n); err != nil {
			return nil, err
		}
	}
	if err := plug(n, ep); err != nil {
		return nil, err
	}
	port, inside := vethNames(ep.ID)
	owner := d.sandboxOwner(r.SandboxKey)
	_, err = d.store.UpdateEndpoint(ep.ID, func(e *store.Endpoint) {
		e.Phase, e.Gone, e.Sandbox, e.Veth = store.Done, time.Time{}, r.SandboxKey, port
		if e.Owner == nil {
			e.Owner = owner
		}
	})
	if err != nil {
		return nil, errors.Join(err, unplug(ep.ID))
	}
	resp := &network.JoinResponse{
		InterfaceName: network.InterfaceName{SrcName: inside, DstPrefix: n.IfacePrefix},
	}
	setGateways(resp, n, ep)
	return resp, nil
}

// setGateways tells the container its way out. Without one the engine would put
// it on docker_gwbridge as well, and publish its ports there, unless told not
// to. The ways out are never static routes: the engine counts them differently.
func setGateways(resp *network.JoinResponse, n store.Network, ep store.Endpoint) {
	if n.Internal {
		resp.DisableGatewayService = true
		return
	}
	if ep.Addr4.IsValid() && n.NextHop4.IsValid() {
		resp.Gateway = n.NextHop4.String()
	}
	if ep.Addr6.IsValid() && n.NextHop6.IsValid() {
		resp.GatewayIPv6 = n.NextHop6.String()
	}
}

// leave takes the endpoint out of its sandbox. It implies
// RevokeExternalConnectivity: not every engine sends that, and none after a
// failed ProgramExternalConnectivity. Unknown is success.
func (d *Driver) leave(ctx context.Context, r endpointRequest) (nothing, error) {
	return d.teardown(ctx, "leave", r, d.takeOut)
}

// takeOut is leave under the locks. It goes on after an error.
func (d *Driver) takeOut(ep store.Endpoint) error {
	err := errors.Join(d.pub.Unpublish(ep.ID), d.forgetEndpoint(ep), unplug(ep.ID))
	if ep.Sandbox == "" {
		return err
	}
	// The host ports are the sandbox's: an endpoint that inherits them may
	// still be there, and be told so only after this.
	others := slices.DeleteFunc(d.store.EndpointsOf(ep.Sandbox), func(e store.Endpoint) bool { return e.ID == ep.ID })
	if len(others) > 0 {
		err = errors.Join(err, d.bequeath(ep, others))
	}
	err = errors.Join(err, d.store.RetireEndpoint(ep.ID, func(e *store.Endpoint) { bury(e, d.clock.now()) }))
	if len(others) == 0 {
		err = errors.Join(err, d.pub.Release(ep.Sandbox))
	}
	return err
}

// bequeath records that others of ep's sandbox keep what ep kept for it.
func (d *Driver) bequeath(ep store.Endpoint, others []store.Endpoint) error {
	kept := keptBy(&ep)
	published := slices.ContainsFunc(others, func(e store.Endpoint) bool { return len(e.Mappings) > 0 })
	if len(kept) == 0 || published {
		return nil
	}
	return d.store.RetireEndpoint(others[0].ID, func(e *store.Endpoint) { e.Parked = slices.Clone(kept) })
}

// forgetEndpoint clears the host's neighbour table of it.
func (d *Driver) forgetEndpoint(ep store.Endpoint) error {
	n, ok := d.store.Network(ep.Network)
	if !ok {
		return nil
	}
	br, err := findBridge(n)
	if err != nil || br == nil {
		return nil // nothing of ours left to clear
	}
	return forgetNeighbours(br, ep)
}

// bury makes a tombstone of an endpoint: it holds nothing, and is kept for the
// calls that the engine may still make.
func bury(e *store.Endpoint, now time.Time) {
	e.Gone, e.Sandbox, e.Veth = now, "", ""
	publishNothing(e)
}
