package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// list prints containers in the order in which they come.
func list(ctx context.Context, c *client.Client, args []string) error {
	f := flag.NewFlagSet("list", flag.ContinueOnError)
	var o client.ContainerListOptions
	f.BoolVar(&o.All, "all", false, "those too that do not run")
	f.IntVar(&o.Limit, "limit", 0, "the last `N` that were made")
	if err := f.Parse(args); err != nil {
		return err
	}
	var err error
	if o.Filters, err = parseFilters(f.Args()); err != nil {
		return err
	}
	found, err := c.ContainerList(ctx, o)
	if err != nil {
		return err
	}
	printSummaries(found.Items)
	return nil
}

func df(ctx context.Context, c *client.Client, _ []string) error {
	usage, err := c.DiskUsage(ctx, client.DiskUsageOptions{Containers: true, Verbose: true})
	if err != nil {
		return err
	}
	printSummaries(usage.Containers.Items)
	return nil
}

// printSummaries leaves the ports in the order in which they come.
func printSummaries(containers []container.Summary) {
	for _, c := range containers {
		line := []string{strings.TrimPrefix(c.Names[0], "/")}
		for _, p := range c.Ports {
			private := fmt.Sprintf("%d/%s", p.PrivatePort, p.Type)
			if p.IP.IsValid() {
				private = hostPort(p.IP, strconv.Itoa(int(p.PublicPort))) + "->" + private
			}
			line = append(line, private)
		}
		fmt.Println(strings.Join(line, " "))
	}
}

func hostPort(ip netip.Addr, port string) string { return net.JoinHostPort(ip.String(), port) }

func inspect(ctx context.Context, c *client.Client, args []string) error {
	if len(args) != 1 {
		return errors.New("want one container")
	}
	found, err := c.ContainerInspect(ctx, args[0], client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	settings := found.Container.NetworkSettings
	for _, p := range slices.SortedFunc(maps.Keys(settings.Ports), comparePorts) {
		line := []string{p.String()}
		if settings.Ports[p] == nil {
			line = append(line, "null")
		}
		for _, b := range settings.Ports[p] {
			line = append(line, hostPort(b.HostIP, b.HostPort))
		}
		fmt.Println(strings.Join(line, " "))
	}
	return printPortMapping(found.Raw)
}

func comparePorts(a, b network.Port) int {
	return cmp.Or(cmp.Compare(a.Num(), b.Num()), cmp.Compare(a.Proto(), b.Proto()))
}

// printPortMapping prints NetworkSettings.PortMapping, where there is one: the
// client has no type for it.
func printPortMapping(inspected json.RawMessage) error {
	var c struct {
		NetworkSettings struct{ PortMapping json.RawMessage }
	}
	if err := json.Unmarshal(inspected, &c); err != nil {
		return err
	}
	if c.NetworkSettings.PortMapping == nil {
		return nil
	}
	var line bytes.Buffer
	if err := json.Compact(&line, c.NetworkSettings.PortMapping); err != nil {
		return err
	}
	fmt.Println("PortMapping", line.String())
	return nil
}
