package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/shim"
)

// startShim runs the command between an engine, of which only the socket is
// given, and the daemon of PORTOLAN_SOCKET.
func startShim(t *testing.T, engine string) (socket string, log *syncBuffer, stop func()) {
	t.Helper()
	socket = filepath.Join(shortDir(t), "run", "docker.sock")
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	status := make(chan int, 1)
	log = &syncBuffer{}
	go func() { status <- run(ctx, []string{"shim", "--listen", socket, "--engine", engine}, log, log) }()
	stop = func() {
		cancel()
		select {
		case s := <-status:
			require.Equal(t, 0, s, log.String())
		case <-time.After(stopWithin):
			require.Fail(t, "the shim does not stop", log.String())
		}
	}
	require.Eventually(t, func() bool {
		_, err := (&client{socket: socket, http: socketClient(socket)}).version(context.Background())
		return err == nil
	}, 10*time.Second, time.Millisecond, "the shim does not answer: %s", log)
	return socket, log, stop
}

func TestShim(t *testing.T) {
	daemon := newFakeDaemon(t, testEndpoints()...)
	fakeEngine(t)
	engine := strings.TrimPrefix(os.Getenv("DOCKER_HOST"), "unix://")
	socket, log, stop := startShim(t, engine)
	info, err := os.Stat(socket)
	require.NoError(t, err)
	assert.Equal(t, os.ModeSocket|0o660, info.Mode())

	resp, err := socketClient(socket).Get("http://docker/containers/json")
	require.NoError(t, err)
	defer resp.Body.Close()
	var list []struct {
		Ports []struct{ PrivatePort, PublicPort int }
	}
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&list))
	require.Len(t, list, 1)
	assert.Len(t, list[0].Ports, 3)

	// The watcher has told whose the endpoint is.
	require.Eventually(t, func() bool {
		daemon.mu.Lock()
		defer daemon.mu.Unlock()
		return len(daemon.owners) > 0
	}, 10*time.Second, time.Millisecond)
	assert.Equal(t, driver.SetOwnerRequest{EndpointID: webEndpoint, ContainerID: webContainer, ContainerName: "web"}, daemon.owners[0])

	_, stderr, code := portolan(t, "shim", "--listen", socket, "--engine", engine)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "another process answers there")
	stop()
	assert.NoFileExists(t, socket)
	assert.Contains(t, log.String(), "portolan shim")
}

func TestShimOnTheEnginesOwnSocket(t *testing.T) {
	fakeEngine(t)
	engine := strings.TrimPrefix(os.Getenv("DOCKER_HOST"), "unix://")
	link := filepath.Join(shortDir(t), "docker.sock")
	require.NoError(t, os.Symlink(engine, link))
	for _, listen := range []string{engine, link} {
		_, stderr, status := portolan(t, "shim", "--listen", listen, "--engine", engine)
		assert.Equal(t, 2, status)
		assert.Contains(t, stderr, "--listen and --engine are the same socket")
	}
	assert.FileExists(t, engine)
}

// A managed plugin that is installed anew listens on another socket.
func TestShimFindsTheDaemonThatIsThere(t *testing.T) {
	dir := shortDir(t)
	socket := filepath.Join(dir, "portolan.sock")
	d := &shimDaemon{socket: socket}
	_, err := d.Endpoints(t.Context())
	require.ErrorIs(t, err, errNoDaemon)

	serve := func(answer string) *http.Server {
		ln, err := listenSocket(socket, ownerOnly)
		require.NoError(t, err)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/Portolan.SetOwner" {
				_, _ = w.Write([]byte(`{"Err":"unknown"}`))
				return
			}
			_, _ = w.Write([]byte(answer))
		})}
		go srv.Serve(ln) //nolint:errcheck // it ends with Close
		t.Cleanup(func() { _ = srv.Close() })
		return srv
	}
	first := serve(`{"Endpoints":[{"ID":"one","Owner":{"containerID":"c","containerName":"web"},"Exposed":[{"proto":17,"port":53}]}]}`)
	all, err := d.Endpoints(t.Context())
	require.NoError(t, err)
	require.Contains(t, all, "one")
	assert.Equal(t, shim.Owner{ContainerID: "c", ContainerName: "web"}, all["one"].Owner)
	assert.Len(t, all["one"].Exposed, 1)
	require.EqualError(t, d.SetOwner(t.Context(), "two", shim.Owner{}), "unknown")

	require.NoError(t, first.Close())
	_, err = d.Endpoints(t.Context())
	require.ErrorIs(t, err, errNoDaemon)
	serve(`{"Endpoints":[{"ID":"two"}]}`)
	all, err = d.Endpoints(t.Context())
	require.NoError(t, err)
	assert.Contains(t, all, "two")
}

func TestSkew(t *testing.T) {
	var w strings.Builder
	tellSkew(&w, "shim", version)
	assert.Empty(t, w.String())
	tellSkew(&w, "shim", "v0")
	assert.Equal(t, "The command is "+version+" and the shim v0: install the same version of both.\n", w.String())
}
