// Command goclient asks the engine at DOCKER_HOST by the Go client, and prints
// what end-to-end tests compare.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/moby/moby/client"
)

const usage = `usage: goclient COMMAND [ARGS]

  list [-all] [-limit N] [FILTER=VALUE…]  a line a container: NAME PORTS…
  df                                      the same, of the disk usage's containers
  inspect CONTAINER                       a line a port: PORT BINDINGS…; then PortMapping
  events ACTION [FILTER=VALUE…]           what happens, from the first event that the
                                          engine remembers to the first ACTION
  pipe CONTAINER                          start it, send it what comes on stdin, print
                                          what it says until it has ended
  get PATH                                a response as it comes, as of /v1.41/info
`

// A command prints what it has got from the engine.
type command func(ctx context.Context, c *client.Client, args []string) error

var commands = map[string]command{
	"list":    list,
	"df":      df,
	"inspect": inspect,
	"events":  events,
	"pipe":    pipe,
	"get":     get,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := run(ctx, commands[os.Args[1]], os.Args[2:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(os.Stderr, "goclient %s: %v\n", os.Args[1], err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, command command, args []string) error {
	c, err := client.New(client.FromEnv)
	if err != nil {
		return err
	}
	defer c.Close()
	return command(ctx, c, args)
}

// parseFilters reads FILTER=VALUE, as docker ps --filter.
func parseFilters(args []string) (client.Filters, error) {
	f := client.Filters{}
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		if !ok {
			return nil, fmt.Errorf("filter %q: want FILTER=VALUE", a)
		}
		f.Add(name, value)
	}
	return f, nil
}
