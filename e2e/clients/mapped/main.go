// Command mapped starts containers by testcontainers-go with exposed ports, asks
// it for the host's address and ports as a test would, and prints them with what
// answers there.
//
//	mapped IMAGE [NETWORK]
//
// IMAGE is that of demo/, which the engine at DOCKER_HOST must have. Without a
// NETWORK the engine chooses. TESTCONTAINERS_RYUK_DISABLED must be true where
// there is no registry: ryuk is an image.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

// patience is for a busy machine; all of it takes a second on an idle one.
const patience = time.Minute

// program is what a container runs.
type program struct {
	cmd   []string
	ports []string
	ready wait.Strategy
	talk  talk
}

var programs = []program{
	{
		cmd:   []string{"echo", "-tcp", "7000,7001", "-udp", "7000"},
		ports: []string{"7000/tcp", "7000/udp", "7001/tcp"},
		ready: wait.ForListeningPort("7001/tcp"),
		talk:  ask,
	},
	{
		cmd:   []string{"web"},
		ports: []string{"80/tcp"},
		ready: wait.ForHTTP("/").WithPort("80/tcp"),
		talk:  get,
	},
}

func main() {
	if len(os.Args) < 2 || len(os.Args) > 3 {
		fmt.Fprintln(os.Stderr, "usage: mapped IMAGE [NETWORK]")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, p := range programs {
		if err := p.run(ctx, os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "mapped: %s: %v\n", p.cmd[0], err)
			os.Exit(1)
		}
	}
}

// run runs the program in a container and prints, for each of its ports, where
// the host has it and what answers there.
func (p program) run(ctx context.Context, image string, networks []string) (err error) {
	how := []testcontainers.ContainerCustomizer{
		testcontainers.WithCmd(p.cmd...),
		testcontainers.WithExposedPorts(p.ports...),
		testcontainers.WithWaitStrategyAndDeadline(patience, p.ready),
	}
	for _, n := range networks {
		how = append(how, network.WithNetworkName(nil, n))
	}
	c, err := testcontainers.Run(ctx, image, how...)
	defer func() { err = errors.Join(err, testcontainers.TerminateContainer(c)) }()
	if err != nil {
		return err
	}
	host, err := c.Host(ctx)
	if err != nil {
		return err
	}
	for _, port := range p.ports {
		mapped, err := c.MappedPort(ctx, port)
		if err != nil {
			return fmt.Errorf("ask for the mapped port of %s: %w", port, err)
		}
		answer, err := p.talk(ctx, host, mapped)
		if err != nil {
			return fmt.Errorf("ask %s at host %s port %s: %w", port, host, mapped, err)
		}
		fmt.Printf("%s %s %s %s\n", port, host, mapped, answer)
	}
	return nil
}
