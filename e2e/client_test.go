package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/enginetest"
)

// newPlainHost is a host with a daemon for a test that is no script.
func newPlainHost(t *testing.T, mapper string, flags ...string) *host {
	h := newHost(t)
	h.export(&testscript.Env{Values: map[any]any{}})
	require.NoError(t, h.startDaemon(mapper, flags...))
	require.NoError(t, h.healthy(patience))
	return h
}

// healthy waits until the daemon has restored its state and all is well.
func (h *host) healthy(within time.Duration) error {
	return enginetest.Poll(within, func() error {
		var answer struct {
			Healthy  bool
			Problems []string
		}
		if err := h.ask("/Plugin.Health", &answer); err != nil {
			return err
		}
		if !answer.Healthy {
			return fmt.Errorf("the daemon is not healthy: %q", answer.Problems)
		}
		return nil
	})
}

// ask reads what the daemon answers to a path.
func (h *host) ask(path string, answer any) error {
	client := http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", h.socket())
		}},
	}
	resp, err := client.Get("http://portolan" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, answer)
}

// docker runs the docker client as the scripts do.
func (h *host) docker(args ...string) (string, error) {
	return enginetest.Run(h.command(append([]string{"docker"}, args...)...))
}

// place is where clients of the tests are, and what they dial there.
type place struct {
	name string
	ns   enginetest.Namespace
	addr string // that they dial
	bind string // their own; "" leaves it to the kernel
}

// places are every way to a port that is published without a host address. Where
// there are BPF hooks, a socket that is bound is left to the proxy.
func (h *host) places() []place {
	return []place{
		{"neighbour, IPv4", h.engine.Peer, enginetest.HostIPv4, ""},
		{"neighbour, IPv6", h.engine.Peer, enginetest.HostIPv6, ""},
		{"127.0.0.1", h.engine.Host, "127.0.0.1", ""},
		{"host's own IPv6", h.engine.Host, enginetest.HostIPv6, ""},
		{"[::1]", h.engine.Host, "::1", ""},
		{"[::1], bound", h.engine.Host, "::1", "::1"},
	}
}

// dial opens a connection on the calling thread, which has to be in the place's
// namespace already.
func (p place) dial(network string, port int, wait time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: wait}
	if ip := net.ParseIP(p.bind); ip != nil && network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: ip}
	} else if ip != nil {
		d.LocalAddr = &net.TCPAddr{IP: ip}
	}
	return d.Dial(network, net.JoinHostPort(p.addr, strconv.Itoa(port)))
}

// open is dial from anywhere.
func (p place) open(network string, port int, wait time.Duration) (c net.Conn, err error) {
	err = p.ns.Do(func() error {
		c, err = p.dial(network, port, wait)
		return err
	})
	return c, err
}

// exchange sends one message to a demo echo and returns what it says to it.
func exchange(c net.Conn, payload string, wait time.Duration) (string, error) {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return "", err
	}
	udp := c.LocalAddr().Network() == "udp"
	if !udp {
		payload += "\n"
	}
	if _, err := io.WriteString(c, payload); err != nil {
		return "", err
	}
	if udp {
		buf := make([]byte, 2048)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	var line strings.Builder
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			return line.String(), err
		}
		if b[0] == '\n' {
			return line.String(), nil
		}
		line.WriteByte(b[0])
	}
}

// send opens a connection, sends one message and returns the answer.
func (p place) send(network string, port int, payload string, wait time.Duration) (string, error) {
	c, err := p.open(network, port, wait)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return exchange(c, payload, wait)
}

// echoed is an answer of demo echo, in parts.
type echoed struct{ port, client, payload, name string }

// parseEchoed reads "PORT CLIENT PAYLOAD NAME"; the payload has no blanks.
func parseEchoed(text string) (e echoed, err error) {
	f := strings.Fields(text)
	if len(f) != 4 {
		return e, fmt.Errorf("no answer of demo echo: %q", text)
	}
	return echoed{f[0], f[1], f[2], f[3]}, nil
}
