package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
)

// events prints TYPE ACTION NAME. It begins in the past: a script cannot know
// when the stream has begun.
func events(ctx context.Context, c *client.Client, args []string) error {
	if len(args) == 0 {
		return errors.New("want an action, as die")
	}
	filters, err := parseFilters(args[1:])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := c.Events(ctx, client.EventsListOptions{Since: "1", Filters: filters})
	for {
		select {
		case e := <-stream.Messages:
			fmt.Println(e.Type, e.Action, e.Actor.Attributes["name"])
			if string(e.Action) == args[0] {
				return nil
			}
		case err := <-stream.Err:
			return err
		}
	}
}

// pipe is for a container that was created with -i and without -t.
func pipe(ctx context.Context, c *client.Client, args []string) error {
	if len(args) != 1 {
		return errors.New("want one container")
	}
	conn, err := c.ContainerAttach(ctx, args[0], client.ContainerAttachOptions{
		Stream: true, Stdin: true, Stdout: true, Stderr: true,
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := c.ContainerStart(ctx, args[0], client.ContainerStartOptions{}); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go send(conn, os.Stdin, sent)
	if _, err := stdcopy.StdCopy(os.Stdout, os.Stderr, conn.Reader); err != nil {
		return err
	}
	return <-sent
}

// send sends what r has, and a half-close behind it.
func send(conn client.ContainerAttachResult, r io.Reader, done chan<- error) {
	_, err := io.Copy(conn.Conn, r)
	done <- errors.Join(err, conn.CloseWrite())
}
