// Command demo is what runs in the containers of the demonstration and of the
// end-to-end tests, and the client that talks to them: one static program that
// is the whole of an image made FROM scratch.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `usage: demo COMMAND [flags]

  dns   [-listen :53]                    answer *.portolan.test over UDP and TCP
  web   [-listen :80]                    serve a greeting over HTTP
  echo  [-tcp PORTS] [-udp PORTS]        answer "PORT CLIENT PAYLOAD" on many ports
  send  [flags] tcp|udp ADDR [PAYLOAD]   send to echo, print what it answers
  stream [flags] tcp|udp ADDR            go on sending to echo -raw, lose nothing
  query [-tcp] SERVER NAME [A|AAAA|TXT]  ask a DNS server
  get   URL                              fetch a page
  sleep                                  wait for a signal

demo COMMAND -h lists the flags of a command.
`

// A command does its work with its arguments until it is done or ctx ends.
type command func(ctx context.Context, args []string) error

var commands = map[string]command{
	"dns":    dns,
	"web":    web,
	"echo":   echo,
	"send":   send,
	"stream": stream,
	"query":  query,
	"get":    get,
	"sleep":  func(ctx context.Context, _ []string) error { <-ctx.Done(); return nil },
}

func main() {
	// The first process of a container gets no signal that it does not handle.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	err := commands[os.Args[1]](ctx, os.Args[2:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintf(os.Stderr, "demo %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}
