package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/moby/moby/client"
)

// get prints a response's body, and on stderr its status and header, without
// what is another one each time or follows from the body.
func get(ctx context.Context, c *client.Client, args []string) error {
	if len(args) != 1 {
		return errors.New("want one path, as /v1.41/info")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+args[0], nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dialer()(ctx) },
	}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	fmt.Fprintln(os.Stderr, resp.Proto, resp.Status)
	resp.Header.Del("Date")
	resp.Header.Del("Content-Length")
	for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
		fmt.Fprintf(os.Stderr, "%s: %s\n", name, strings.Join(resp.Header[name], ", "))
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
