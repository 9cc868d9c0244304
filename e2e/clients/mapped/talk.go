package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/network"
)

// talk says something to a port of the host and returns the answer, a line.
type talk func(ctx context.Context, host string, port network.Port) (string, error)

// ask is for demo echo.
func ask(ctx context.Context, host string, port network.Port) (string, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, string(port.Proto()), net.JoinHostPort(host, port.Port()))
	if err != nil {
		return "", err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	// Over UDP there is no newline in an answer but the one that was sent.
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(answer), err
}

// get is for demo web.
func get(ctx context.Context, host string, port network.Port) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port.Port())+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", resp.Status)
	}
	answer, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(answer)), err
}
