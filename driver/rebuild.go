package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// rebuild makes the bridges at the start and returns the networks that have one.
// The others are d.unbuilt, for Check to try again.
func (d *Driver) rebuild(nets []store.Network) map[string]store.Network {
	built := make(map[string]store.Network, len(nets))
	d.unbuilt = map[string]bool{}
	for _, n := range nets {
		if n.Phase != store.Done {
			continue
		}
		if err := d.makeBridge(n); err != nil {
			d.log.Error("rebuild a network; it is tried again", "network", n.ID, "err", err)
			d.unbuilt[n.ID] = true
			continue
		}
		built[n.ID] = n
	}
	return built
}

// rulesOf are the networks that get rules at the start: those that are built, and
// of the others those whose bridge is there, for it not to stand open. What has
// the name of a bridge of ours without being it is somebody else's, and gets none.
func (d *Driver) rulesOf(built map[string]store.Network) (rules []portmap.Network) {
	for _, n := range built {
		rules = append(rules, n.Network)
	}
	for id := range d.unbuilt {
		n, ok := d.store.Network(id)
		if br, err := findBridge(n); ok && err == nil && br != nil {
			rules = append(rules, n.Network)
		}
	}
	return rules
}

// rebuildLate tries again what rebuild could not do.
func (d *Driver) rebuildLate() (repaired []string, err error) {
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(d.unbuilt)) {
		did, err := d.rebuildOne(id)
		if err != nil {
			errs = append(errs, fmt.Errorf("rebuild network %.12s: %w", id, err))
			continue
		}
		delete(d.unbuilt, id)
		if did {
			repaired = append(repaired, fmt.Sprintf("network %.12s", id))
		}
	}
	return repaired, errors.Join(errs...)
}

func (d *Driver) rebuildOne(id string) (did bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), repairLimit)
	defer cancel()
	n, err := d.rebuildNetwork(ctx, id)
	if err != nil || n.ID == "" {
		return false, err
	}
	var errs []error
	for _, ep := range d.store.Endpoints() {
		if ep.Network == id && joined(ep) {
			errs = append(errs, d.resume(ctx, n, ep))
		}
	}
	return true, errors.Join(errs...)
}

// rebuildNetwork is rebuild and reopen for one network. It returns none for one
// that has been removed meanwhile.
func (d *Driver) rebuildNetwork(ctx context.Context, id string) (store.Network, error) {
	release, err := d.networks.share(ctx, id)
	if err != nil {
		return store.Network{}, err
	}
	defer release()
	n, ok := d.store.Network(id)
	if !ok || n.Phase != store.Done {
		return store.Network{}, nil
	}
	if _, err := findBridge(n); err != nil { // before it gets rules
		return n, err
	}
	return n, d.raiseNetwork(n)
}

// resume puts an endpoint that was there at the start back on its network, with
// the ports that it had.
func (d *Driver) resume(ctx context.Context, n store.Network, ep store.Endpoint) error {
	_, err := d.teardown(ctx, "resume", endpointRequest{ep.Network, ep.ID}, func(ep store.Endpoint) error {
		if !joined(ep) {
			return nil // it has left meanwhile
		}
		alive, err := d.revive(n, ep)
		if err != nil || !alive {
			return err // the dead are buried by others
		}
		if err := d.forward(n); err != nil {
			return err
		}
		if !ep.Gateway || len(ep.Mappings) == 0 {
			return nil
		}
		_, err = d.pub.Publish(ep.Sandbox, target(n, ep), bindingsOf(ep.Mappings), d.recordOf(ep))
		return err
	})
	return err
}

// bindingsOf asks for what there was, host ports included.
func bindingsOf(ms []portmap.Mapping) (bs []portmap.PortBinding) {
	for _, m := range ms {
		bs = append(bs, portmap.PortBinding{
			Proto: m.Proto, Port: m.Port, PortEnd: m.PortEnd(),
			HostIP: m.HostIP, HostPort: m.HostPort, HostPortEnd: m.HostPortEnd,
		})
	}
	return bs
}
