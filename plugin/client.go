package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// defaultSocket is where `portolan daemon` listens and where the engine looks
// for a driver named portolan.
const defaultSocket = "/run/docker/plugins/portolan.sock"

// managedSockets are those of managed plugins, seen from the host: each plugin
// has a folder named by its ID.
const managedSockets = "/run/docker/plugins/*/portolan.sock"

// errNoDaemon says that no daemon answers on any socket that was tried.
var errNoDaemon = errors.New("no portolan daemon answers")

// client talks to a daemon over its socket.
type client struct {
	socket string
	http   *http.Client
}

// addSocketFlag adds --socket to a command that is a client of the daemon.
func addSocketFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("socket", "", "the daemon's socket (default: "+defaultSocket+", or that of the managed plugin)")
}

// findDaemon is a client of the daemon at socket, or, where socket is empty, of
// the first that answers: a daemon of its own, else a managed plugin. Engines in
// other network namespaces have their plugins' sockets in the same folder; those
// are of no concern here. The error wraps errNoDaemon and says what was tried.
func findDaemon(ctx context.Context, socket string) (*client, error) {
	sockets := []string{socket}
	if socket == "" {
		managed, _ := filepath.Glob(managedSockets) // fails only on a bad pattern
		sockets = append([]string{defaultSocket}, managed...)
	}
	tried := make([]string, 0, len(sockets))
	for _, s := range sockets {
		if socket == "" && isElsewhere(s) {
			tried = append(tried, s+" (of another network namespace)")
			continue
		}
		c := &client{socket: s, http: socketClient(s)}
		_, err := c.version(ctx)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		tried = append(tried, dialText(s, err))
	}
	return nil, fmt.Errorf("%w; tried %s", errNoDaemon, strings.Join(tried, "; "))
}

// isElsewhere says whether the process behind a socket is known to be in another
// network namespace.
func isElsewhere(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	cred, err := peer(conn)
	if err != nil || cred.Pid == 0 {
		return false
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", cred.Pid))
	if err != nil {
		return false
	}
	ours, err := os.Stat("/proc/thread-self/ns/net")
	return err == nil && !os.SameFile(ours, theirs)
}

// dialText is a failed attempt in the fewest words: net's own error repeats the
// socket's path.
func dialText(socket string, err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return fmt.Sprintf("%s (%v)", socket, err)
}

// call sends one request of the daemon's own API, as method List. A nil
// response is not read.
func (c *client) call(ctx context.Context, method string, request, response any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://portolan/Portolan."+method, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the daemon at %s: %w", c.socket, transportCause(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return fmt.Errorf("the daemon at %s does not know %s; it is older than this command", c.socket, method)
	}
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, resp.Body); err != nil {
		return fmt.Errorf("ask the daemon at %s: %w", c.socket, err)
	}
	var refusal struct{ Err string }
	if json.Unmarshal(buf.Bytes(), &refusal) == nil && refusal.Err != "" {
		return errors.New(refusal.Err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the daemon at %s: %s", c.socket, resp.Status)
	}
	if response == nil {
		return nil
	}
	if err := json.Unmarshal(buf.Bytes(), response); err != nil {
		return fmt.Errorf("read the answer of the daemon at %s: %w", c.socket, err)
	}
	return nil
}
