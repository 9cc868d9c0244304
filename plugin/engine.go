package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// errNoContainer says that the engine does not know a container.
var errNoContainer = errors.New("no such container")

// engine is the Docker engine of this host. Only the command line asks it; the
// daemon never does, since the engine waits for the daemon.
type engine struct {
	socket string
	http   *http.Client
}

// container is what the command line wants to know of one.
type container struct {
	ID        string
	Name      string   // without the leading slash
	Endpoints []string // the IDs of its endpoints, on every network
}

// openEngine finds the engine's socket as the docker command does: DOCKER_HOST,
// else the context that DOCKER_CONTEXT or Docker's config.json names, else
// /var/run/docker.sock. An engine that is not reached by a unix socket is an
// error: the daemon serves the engine of its own host.
func openEngine() (*engine, error) {
	host, err := engineHost()
	if err != nil {
		return nil, err
	}
	socket, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		return nil, fmt.Errorf("engine %s is not on this host; set DOCKER_HOST=unix:///var/run/docker.sock", host)
	}
	return &engine{socket: socket, http: socketClient(socket)}, nil
}

func engineHost() (string, error) {
	const byDefault = "unix:///var/run/docker.sock"
	if h := os.Getenv("DOCKER_HOST"); h != "" {
		return h, nil
	}
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return byDefault, nil
		}
		dir = filepath.Join(home, ".docker")
	}
	name := os.Getenv("DOCKER_CONTEXT")
	if name == "" {
		var config struct {
			CurrentContext string `json:"currentContext"`
		}
		if err := readJSON(filepath.Join(dir, "config.json"), &config); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		name = config.CurrentContext
	}
	if name == "" || name == "default" {
		return byDefault, nil
	}
	return contextHost(dir, name)
}

// contextHost is the engine's address in a docker context, which lies in a
// folder that is named by the hash of the context's name.
func contextHost(dir, name string) (string, error) {
	sum := sha256.Sum256([]byte(name))
	var meta struct {
		Endpoints map[string]struct{ Host string }
	}
	file := filepath.Join(dir, "contexts", "meta", hex.EncodeToString(sum[:]), "meta.json")
	if err := readJSON(file, &meta); err != nil {
		return "", fmt.Errorf("docker context %q: %w", name, err)
	}
	host := meta.Endpoints["docker"].Host
	if host == "" {
		return "", fmt.Errorf("docker context %q: no engine address in %s", name, file)
	}
	return host, nil
}

func readJSON(file string, v any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}

// container looks one up by name, ID or the start of an ID. The error wraps
// errNoContainer where there is none.
func (e *engine) container(ctx context.Context, name string) (container, error) {
	var c struct {
		ID              string `json:"Id"`
		Name            string
		NetworkSettings struct{ Networks attachments }
	}
	if err := e.get(ctx, "/containers/"+url.PathEscape(name)+"/json", &c); err != nil {
		return container{}, err
	}
	return container{c.ID, strings.TrimPrefix(c.Name, "/"), c.NetworkSettings.Networks.endpoints()}, nil
}

// running lists the containers that run.
func (e *engine) running(ctx context.Context) ([]container, error) {
	var list []struct {
		ID              string `json:"Id"`
		Names           []string
		NetworkSettings struct{ Networks attachments }
	}
	if err := e.get(ctx, "/containers/json", &list); err != nil {
		return nil, err
	}
	out := make([]container, 0, len(list))
	for _, c := range list {
		name := ""
		for _, n := range c.Names {
			// A linked container has more names: /other/alias.
			if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
				name = n
			}
		}
		out = append(out, container{c.ID, name, c.NetworkSettings.Networks.endpoints()})
	}
	return out, nil
}

// attachments are a container's networks, by name.
type attachments map[string]struct{ EndpointID string }

func (a attachments) endpoints() []string {
	var ids []string
	for _, n := range a {
		if n.EndpointID != "" {
			ids = append(ids, n.EndpointID)
		}
	}
	return ids
}

// get has no API version in its path: the engine then answers in its newest,
// and the few fields that are read here have not changed since 2015.
func (e *engine) get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return err
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the engine at %s: %w", e.socket, transportCause(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return errNoContainer
	}
	if resp.StatusCode != http.StatusOK {
		var body struct {
			Message string `json:"message"`
		}
		_ = json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&body)
		return fmt.Errorf("ask the engine at %s: %s %s", e.socket, resp.Status, body.Message)
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("ask the engine at %s: %w", e.socket, err)
	}
	return nil
}

// socketClient is an HTTP client whose every request goes to one unix socket.
func socketClient(path string) *http.Client {
	return &http.Client{
		// Long enough for a daemon that restores its state.
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			},
			DisableKeepAlives: true,
		},
	}
}

// transportCause takes off what http.Client puts around an error: a method and
// an address that nobody typed.
func transportCause(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}
