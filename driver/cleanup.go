package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/portolan/portolan/internal/sklookup"
	"github.com/portolan/portolan/internal/store"
)

// cleanup takes everything down, for portolan cleanup: whatever still runs on
// one of our networks is cut off.
func (d *Driver) cleanup(ctx context.Context, _ nothing) (nothing, error) {
	// Nobody is let in meanwhile, whom the sweep would hit.
	d.admitting.Lock()
	defer d.admitting.Unlock()
	var errs []error
	for _, n := range d.store.Networks() {
		errs = append(errs, d.dropNetwork(ctx, n.ID))
	}
	for _, ep := range d.store.Endpoints() { // of no network that we know
		_, err := d.teardown(ctx, "delete", endpointRequest{ep.Network, ep.ID}, d.dropEndpoint)
		errs = append(errs, err)
	}
	errs = append(errs, d.razeStrays())
	if len(d.store.Networks()) == 0 { // else something could not be removed
		errs = append(errs, d.sweep())
	}
	if err := errors.Join(errs...); err != nil {
		return nothing{}, fmt.Errorf("clean up: %w", err)
	}
	return nothing{}, nil
}

// razeStrays removes bridges without a record, and the rules that close them.
func (d *Driver) razeStrays() error {
	ours, err := Interfaces()
	errs := []error{err}
	for _, i := range ours {
		if _, known := d.store.Network(i.Network); i.Network != "" && !known {
			errs = append(errs, d.razeStray(i.Network))
		}
	}
	return errors.Join(errs...)
}

// sweep removes what has no record any more.
func (d *Driver) sweep() error {
	d.forwarding.Lock()
	defer d.forwarding.Unlock()
	changed := d.store.Sysctls()
	if err := Cleanup(d.log, d.cfg.SysctlDir, changed); err != nil {
		return err
	}
	var errs []error
	for _, c := range changed {
		errs = append(errs, d.store.DeleteSysctl(c.Path))
	}
	return errors.Join(append(errs, d.mapper.Guard(false, false))...)
}

// Cleanup removes every bridge and veth pair of ours and puts back the sysctls
// that were changed, last first, without a daemon. The rules are the Mapper's.
// sysctlDir "" means /proc/sys/net. It goes on after an error.
func Cleanup(log *slog.Logger, sysctlDir string, changed []store.Sysctl) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if sysctlDir == "" {
		sysctlDir = defaultSysctlDir
	}
	links, err := ourLinks()
	errs := []error{err}
	for _, l := range links {
		log.Info("remove interface", "interface", l.Attrs().Name)
		errs = append(errs, removeLink(l))
	}
	sys := sysctls{sysctlDir}
	for _, c := range slices.Backward(changed) {
		if c.Path == sklookup.ReservedPorts {
			log.Info("take ports out of sysctl", "sysctl", sysctlName(c.Path), "ports", c.New)
		} else {
			log.Info("put back sysctl", "sysctl", sysctlName(c.Path), "value", c.Old)
		}
		errs = append(errs, sys.undo(c))
	}
	return errors.Join(errs...)
}
