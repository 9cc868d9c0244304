package main

import (
	"context"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/internal/store"
)

// owner is whose an endpoint is, empty where nobody knows.
func owner(ep driver.EndpointInfo) store.Owner {
	if ep.Owner == nil {
		return store.Owner{}
	}
	return *ep.Owner
}

func (c *client) version(ctx context.Context) (driver.VersionResponse, error) {
	var v driver.VersionResponse
	err := c.call(ctx, "Version", struct{}{}, &v)
	return v, err
}

func (c *client) list(ctx context.Context) ([]driver.EndpointInfo, error) {
	var l driver.ListResponse
	err := c.call(ctx, "List", struct{}{}, &l)
	return l.Endpoints, err
}

func (c *client) status(ctx context.Context) (driver.StatusResponse, error) {
	var s driver.StatusResponse
	err := c.call(ctx, "Status", struct{}{}, &s)
	return s, err
}

func (c *client) setOwner(ctx context.Context, endpoint string, o store.Owner) error {
	return c.call(ctx, "SetOwner", driver.SetOwnerRequest{
		EndpointID: endpoint, ContainerID: o.ContainerID, ContainerName: o.ContainerName,
	}, nil)
}

// cleanup has the daemon remove its networks, and all that is theirs.
func (c *client) cleanup(ctx context.Context) error {
	return c.call(ctx, "Cleanup", struct{}{}, nil)
}
