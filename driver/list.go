package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// APIVersion is that of our own API, the paths /Portolan.… on the same socket.
// A command that was made for another one says so.
const APIVersion = 1

// VersionResponse is the answer of /Portolan.Version.
type VersionResponse struct {
	Version  string
	API      int
	PID      int
	StateDir string
	Info     map[string]string
}

// ListResponse is the answer of /Portolan.List: the endpoints that are not
// tombstones, by ID.
type ListResponse struct {
	Endpoints []EndpointInfo
}

// EndpointInfo is an endpoint as the command line shows it.
type EndpointInfo struct {
	ID      string
	Network string // its ID
	Bridge  string // the network's interface on the host
	Sandbox string // empty before it has joined
	Created time.Time
	// Owner is nil until somebody has told (/Portolan.SetOwner).
	Owner *store.Owner `json:",omitempty"`
	// IPv4 and IPv6 are the container's; the zero Addr where it has none.
	IPv4    netip.Addr
	IPv6    netip.Addr
	MAC     string
	Exposed []portmap.ExposedPort
	// Gateway: this endpoint publishes the ports of its sandbox.
	Gateway  bool
	Mappings []portmap.Mapping
	Target   portmap.Target
}

// SetOwnerRequest is the body of /Portolan.SetOwner: which container an
// endpoint belongs to.
type SetOwnerRequest struct {
	EndpointID    string
	ContainerID   string
	ContainerName string
}

func (r SetOwnerRequest) check() error {
	if r.EndpointID == "" {
		return errors.New("no EndpointID")
	}
	return nil
}

func (d *Driver) version(context.Context, nothing) (VersionResponse, error) {
	return VersionResponse{d.cfg.Version, APIVersion, os.Getpid(), d.store.Dir(), d.cfg.Info}, nil
}

func (d *Driver) list(context.Context, nothing) (ListResponse, error) {
	resp := ListResponse{Endpoints: []EndpointInfo{}}
	for _, ep := range d.store.Endpoints() {
		if !ep.Gone.IsZero() {
			continue
		}
		n, _ := d.store.Network(ep.Network)
		t := target(n, ep)
		resp.Endpoints = append(resp.Endpoints, EndpointInfo{
			ID:       ep.ID,
			Network:  ep.Network,
			Bridge:   n.Bridge,
			Sandbox:  ep.Sandbox,
			Created:  ep.Created,
			Owner:    ep.Owner,
			IPv4:     t.IPv4,
			IPv6:     t.IPv6,
			MAC:      ep.MAC,
			Exposed:  ep.Exposed,
			Gateway:  ep.Gateway,
			Mappings: ep.Mappings,
			Target:   t,
		})
	}
	return resp, nil
}

// setOwner records whose an endpoint is. A sandbox is one run of one container,
// so it is said of all its endpoints, and of those that join later.
func (d *Driver) setOwner(_ context.Context, r SetOwnerRequest) (nothing, error) {
	told, found := d.store.Endpoint(r.EndpointID)
	if !found {
		return nothing{}, fmt.Errorf("set the owner of endpoint %.12s: it is not known to Portolan", r.EndpointID)
	}
	all := []store.Endpoint{told}
	if told.Sandbox != "" {
		all = d.store.EndpointsOf(told.Sandbox)
	}
	for _, ep := range all {
		_, err := d.store.UpdateEndpoint(ep.ID, func(e *store.Endpoint) {
			e.Owner = &store.Owner{ContainerID: r.ContainerID, ContainerName: r.ContainerName}
		})
		if err != nil {
			return nothing{}, fmt.Errorf("set the owner of endpoint %.12s: %w", ep.ID, err)
		}
	}
	return nothing{}, nil
}

// sandboxOwner is whose a sandbox is, nil where nobody has told.
func (d *Driver) sandboxOwner(sandbox string) *store.Owner {
	for _, ep := range d.store.EndpointsOf(sandbox) {
		if ep.Owner != nil {
			return ep.Owner
		}
	}
	return nil
}
