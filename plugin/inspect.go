package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

func newInspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect NAME...",
		Short: "Show what containers publish, as JSON",
		Long: `Show what containers publish, as JSON in the format of docker inspect.

NAME is a container, by name or ID, or an endpoint, by ID. The start of an ID
will do. A container that has endpoints on several networks has an element for
each of them, first the one that publishes its ports.`,
		Args: cobra.MinimumNArgs(1),
	}
	socket := addSocketFlag(cmd)
	format := cmd.Flags().StringP("format", "f", "", "print each by this Go template instead, as docker inspect does; json is a function of it")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		show, err := printer(*format)
		if err != nil {
			return usageError{err}
		}
		c, err := findDaemon(cmd.Context(), *socket)
		if err != nil {
			return err
		}
		endpoints, err := c.list(cmd.Context())
		if err != nil {
			return err
		}
		found := []inspection{} // JSON: an empty array, not null
		var errs []error
		for _, name := range names {
			eps, err := resolve(cmd.Context(), c, endpoints, name)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			slices.SortStableFunc(eps, func(a, b driver.EndpointInfo) int { return len(b.Mappings) - len(a.Mappings) })
			for _, ep := range eps {
				found = append(found, inspect(ep))
			}
		}
		return errors.Join(append(errs, show(cmd.OutOrStdout(), found))...)
	}
	return cmd
}

// printer prints inspections by a template, a line each, or, without one, as
// JSON.
func printer(format string) (func(io.Writer, []inspection) error, error) {
	if format == "" {
		return func(w io.Writer, found []inspection) error { return printJSON(w, found) }, nil
	}
	t, err := template.New("--format").Funcs(template.FuncMap{"json": oneLineJSON}).Parse(format)
	if err != nil {
		return nil, err
	}
	return func(w io.Writer, found []inspection) error {
		for _, i := range found {
			if err := t.Execute(w, i); err != nil {
				return err
			}
			fmt.Fprintln(w)
		}
		return nil
	}, nil
}

func oneLineJSON(v any) (string, error) {
	text, err := json.Marshal(v)
	return string(text), err
}

// inspection is an endpoint in the words of docker inspect, and, beside
// today's Ports, the PortMapping of 2013 with its two dictionaries.
type inspection struct {
	EndpointID      string
	NetworkID       string
	ContainerID     string `json:",omitempty"`
	ContainerName   string `json:",omitempty"`
	NetworkSettings networkSettings
}

type networkSettings struct {
	Ports       map[string][]portmap.HostPort
	PortMapping map[string]map[string]string
}

func inspect(ep driver.EndpointInfo) inspection {
	pub := portmap.Publication{Target: ep.Target, Mappings: ep.Mappings}
	return inspection{
		EndpointID:    ep.ID,
		NetworkID:     ep.Network,
		ContainerID:   owner(ep).ContainerID,
		ContainerName: owner(ep).ContainerName,
		NetworkSettings: networkSettings{
			Ports:       portmap.Ports(pub, ep.Exposed),
			PortMapping: portmap.PortMapping(pub.Published()),
		},
	}
}

// errNotOurs says that a container exists, and has nothing to do with us.
var errNotOurs = errors.New("is on no network of Portolan's, or does not run")

// resolve finds the endpoints that name stands for: the endpoint of that ID; the
// container that the daemon knows by that name or ID; the container that the
// engine knows; an endpoint or known container whose ID begins so.
func resolve(ctx context.Context, c *client, endpoints []driver.EndpointInfo, name string) ([]driver.EndpointInfo, error) {
	found := matching(endpoints, func(ep driver.EndpointInfo) bool { return ep.ID == name })
	if len(found) == 0 {
		found = matching(endpoints, func(ep driver.EndpointInfo) bool {
			return owner(ep).ContainerName == name || owner(ep).ContainerID == name
		})
	}
	if len(found) > 0 {
		return found, nil
	}
	found, engineErr := fromEngine(ctx, c, endpoints, name)
	if len(found) > 0 {
		return found, nil
	}
	byPrefix := matching(endpoints, func(ep driver.EndpointInfo) bool {
		return strings.HasPrefix(ep.ID, name) || strings.HasPrefix(owner(ep).ContainerID, name)
	})
	switch {
	case len(byPrefix) == 1 || sameContainer(byPrefix):
		return byPrefix, nil
	case len(byPrefix) > 1:
		return nil, fmt.Errorf("%s is the start of %d IDs; give more of it", name, len(byPrefix))
	case errors.Is(engineErr, errNotOurs):
		return nil, engineErr
	case engineErr != nil && !errors.Is(engineErr, errNoContainer):
		return nil, fmt.Errorf("no such endpoint: %s; nor can its container be looked up: %w", name, engineErr)
	}
	return nil, fmt.Errorf("no such container or endpoint: %s", name)
}

func matching(endpoints []driver.EndpointInfo, ok func(driver.EndpointInfo) bool) []driver.EndpointInfo {
	var found []driver.EndpointInfo
	for _, ep := range endpoints {
		if ok(ep) {
			found = append(found, ep)
		}
	}
	return found
}

// sameContainer says whether all endpoints are of one known container.
func sameContainer(endpoints []driver.EndpointInfo) bool {
	if len(endpoints) == 0 || owner(endpoints[0]).ContainerID == "" {
		return false
	}
	for _, ep := range endpoints {
		if owner(ep).ContainerID != owner(endpoints[0]).ContainerID {
			return false
		}
	}
	return true
}

// fromEngine finds the endpoints of a container of the engine's, and tells the
// daemon whose they are.
func fromEngine(ctx context.Context, c *client, endpoints []driver.EndpointInfo, name string) ([]driver.EndpointInfo, error) {
	e, err := openEngine()
	if err != nil {
		return nil, err
	}
	ctr, err := e.container(ctx, name)
	if err != nil {
		return nil, err
	}
	var found []driver.EndpointInfo
	for _, ep := range endpoints {
		for _, id := range ctr.Endpoints {
			if ep.ID != id {
				continue
			}
			ep.Owner = &store.Owner{ContainerID: ctr.ID, ContainerName: ctr.Name}
			found = append(found, ep)
			// What is asked for is known without the daemon; if it does not
			// take it, the next command asks the engine again.
			_ = c.setOwner(ctx, ep.ID, *ep.Owner)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("container %s %w", ctr.Name, errNotOurs)
	}
	return found, nil
}
