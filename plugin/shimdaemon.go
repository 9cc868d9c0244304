package main

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/shim"
)

// shimDaemon is the daemon as the shim sees it: whichever answers, and another
// one when that is gone. A managed plugin that is installed anew listens
// elsewhere.
type shimDaemon struct {
	socket string // "": to be found

	mu    sync.Mutex // guards below
	found *client
}

var _ shim.Daemon = (*shimDaemon)(nil)

// Endpoints are all endpoints, by ID.
func (d *shimDaemon) Endpoints(ctx context.Context) (map[string]shim.Endpoint, error) {
	all := make(map[string]shim.Endpoint)
	err := d.ask(ctx, func(c *client) error {
		endpoints, err := c.list(ctx)
		for _, ep := range endpoints {
			all[ep.ID] = shim.Endpoint{
				Publication: portmap.Publication{Target: ep.Target, Mappings: ep.Mappings},
				Exposed:     ep.Exposed,
				Owner:       shim.Owner(owner(ep)),
			}
		}
		return err
	})
	return all, err
}

// Socket is where the daemon that answered last listens.
func (d *shimDaemon) Socket(ctx context.Context) (socket string, err error) {
	err = d.ask(ctx, func(c *client) error {
		socket = c.socket
		return nil
	})
	return socket, err
}

// SetOwner tells whose an endpoint is.
func (d *shimDaemon) SetOwner(ctx context.Context, endpoint string, o shim.Owner) error {
	return d.ask(ctx, func(c *client) error { return c.setOwner(ctx, endpoint, store.Owner(o)) })
}

// ask has do ask the daemon that answered last, or, where that one is gone, the
// one that answers now.
func (d *shimDaemon) ask(ctx context.Context, do func(*client) error) error {
	d.mu.Lock()
	last := d.found
	d.mu.Unlock()
	if last != nil {
		err := do(last)
		if _, gone := errors.AsType[*net.OpError](err); !gone {
			return err
		}
	}
	now, err := findDaemon(ctx, d.socket)
	d.mu.Lock()
	d.found = now // nil after an error
	d.mu.Unlock()
	if err != nil {
		return err
	}
	return do(now)
}
