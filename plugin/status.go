package main

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/proxy"
)

func newStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what was served, dropped and refused, by port",
		Long: `Show the numbers of published ports that are not zero: what goes through the
proxy now and since the port was published, what was refused or dropped, and why;
and those of the host. The kernel counts by itself what it carries.`,
		Args: cobra.NoArgs,
	}
	socket := addSocketFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := findDaemon(cmd.Context(), *socket)
		if err != nil {
			return err
		}
		st, err := c.status(cmd.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), st)
		}
		endpoints, err := c.list(cmd.Context())
		if err != nil {
			return err
		}
		nameOwners(cmd.Context(), endpoints)
		return printStatus(cmd.OutOrStdout(), st, endpoints)
	}
	return cmd
}

// printStatus prints a line a number, the host's last.
func printStatus(w io.Writer, st driver.StatusResponse, endpoints []driver.EndpointInfo) error {
	names := make(map[string]string)
	for _, ep := range endpoints {
		names[ep.ID] = owner(ep).ContainerName
	}
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, "PORTS\tCONTAINER\tNUMBER\tREASON\tVALUE")
	line := func(ports, container string, s proxy.Sample) {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\n", ports, container, s.Name, cmp.Or(s.Reason, "-"), s.Value)
	}
	for _, m := range st.Mappings {
		for _, s := range m.Samples {
			line(m.Mapping.String(), cmp.Or(names[m.EndpointID], shortID(m.EndpointID)), s)
		}
	}
	for _, s := range st.Host {
		line("(host)", "-", s)
	}
	return tw.Flush()
}
