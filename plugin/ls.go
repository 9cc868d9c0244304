package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

func newListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"ps"},
		Short:   "List published ports, a line a range",
		Args:    cobra.NoArgs,
	}
	socket := addSocketFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON, with whole IDs")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := findDaemon(cmd.Context(), *socket)
		if err != nil {
			return err
		}
		endpoints, err := c.list(cmd.Context())
		if err != nil {
			return err
		}
		nameOwners(cmd.Context(), endpoints)
		rows := rowsOf(endpoints)
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), rows)
		}
		return printTable(cmd.OutOrStdout(), rows)
	}
	return cmd
}

// nameOwners asks the engine, where there is one that answers soon, which
// container each endpoint is of. It knows better than the daemon, which has
// only been told.
func nameOwners(ctx context.Context, endpoints []driver.EndpointInfo) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	e, err := openEngine()
	if err != nil {
		return
	}
	containers, err := e.running(ctx)
	if err != nil {
		return
	}
	byEndpoint := make(map[string]container)
	for _, c := range containers {
		for _, id := range c.Endpoints {
			byEndpoint[id] = c
		}
	}
	for i, ep := range endpoints {
		if c, ok := byEndpoint[ep.ID]; ok {
			endpoints[i].Owner = &store.Owner{ContainerID: c.ID, ContainerName: c.Name}
		}
	}
}

// row is one line of `portolan ls`: a mapping, and whose it is. A mapping of a
// routed network has no host side.
type row struct {
	Ports            string
	Proto            string
	HostIP           netip.Addr `json:",omitzero"`
	HostPort         uint16
	HostPortEnd      uint16
	ContainerPort    uint16
	ContainerPortEnd uint16
	EndpointID       string
	NetworkID        string
	ContainerID      string
	ContainerName    string
	Origin           portmap.Origin

	proto portmap.Proto
}

// rowsOf lists mappings by protocol, host port and host address.
func rowsOf(endpoints []driver.EndpointInfo) []row {
	rows := []row{} // JSON: an empty array, not null
	for _, ep := range endpoints {
		for _, m := range ep.Mappings {
			rows = append(rows, rowOf(ep, m))
		}
	}
	slices.SortFunc(rows, func(a, b row) int {
		return cmp.Or(
			cmp.Compare(a.proto, b.proto),
			cmp.Compare(a.HostPort, b.HostPort),
			a.HostIP.Compare(b.HostIP),
			cmp.Compare(a.EndpointID, b.EndpointID),
		)
	})
	return rows
}

func rowOf(ep driver.EndpointInfo, m portmap.Mapping) row {
	r := row{
		Ports:            m.String(),
		Proto:            m.Proto.String(),
		HostIP:           m.HostIP,
		HostPort:         m.HostPort,
		HostPortEnd:      m.HostPortEnd,
		ContainerPort:    m.Port,
		ContainerPortEnd: m.PortEnd(),
		EndpointID:       ep.ID,
		NetworkID:        ep.Network,
		ContainerID:      owner(ep).ContainerID,
		ContainerName:    owner(ep).ContainerName,
		Origin:           cmp.Or(m.Origin, portmap.OriginEngine),
		proto:            m.Proto,
	}
	if len(ep.Target.HostIPs(m)) == 0 { // routed: open at the container's own address
		_, r.Ports, _ = strings.Cut(r.Ports, "->")
		r.HostIP, r.HostPort, r.HostPortEnd = netip.Addr{}, 0, 0
	}
	return r
}

func printTable(w io.Writer, rows []row) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, "PORTS\tENDPOINT\tNETWORK\tCONTAINER")
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", r.Ports, shortID(r.EndpointID), shortID(r.NetworkID),
			cmp.Or(r.ContainerName, shortID(r.ContainerID), "-"))
	}
	return tw.Flush()
}

// shortID is what docker shows of an ID.
func shortID(id string) string { return fmt.Sprintf("%.12s", id) }

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // ports have arrows
	enc.SetIndent("", "    ")
	return enc.Encode(v)
}
