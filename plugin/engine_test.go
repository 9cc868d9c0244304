package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The two endpoints and the container of the tests.
const (
	webEndpoint  = "4f1c2a90b7de4f1c2a90b7de4f1c2a90b7de4f1c2a90b7de4f1c2a90b7de4f1c"
	dnsEndpoint  = "4f9ee013c2aa4f9ee013c2aa4f9ee013c2aa4f9ee013c2aa4f9ee013c2aa4f9e"
	webContainer = "8d2e41b0a4578d2e41b0a4578d2e41b0a4578d2e41b0a4578d2e41b0a4578d2e"
	testNetwork  = "c0ffee11d00dc0ffee11d00dc0ffee11d00dc0ffee11d00dc0ffee11d00dc0ff"
)

// serveUnix serves h on a unix socket until the test ends.
func serveUnix(t *testing.T, path string, h http.Handler) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	require.NoError(t, err)
	srv := &http.Server{Handler: h}
	done := make(chan error, 1)
	go serve(srv, ln, done)
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
}

// fakeEngine knows one container, web, and sets DOCKER_HOST.
func fakeEngine(t *testing.T) {
	t.Helper()
	path := filepath.Join(shortDir(t), "docker.sock")
	networks := map[string]any{"Networks": map[string]any{"mynet": map[string]any{"EndpointID": webEndpoint}}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containers/{name}/json", func(w http.ResponseWriter, r *http.Request) {
		switch r.PathValue("name") {
		case "web", webContainer, webContainer[:12]:
			_ = json.NewEncoder(w).Encode(map[string]any{"Id": webContainer, "Name": "/web", "NetworkSettings": networks})
		case "broken":
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write([]byte(`{"message":"out of luck"}`))
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"message":"No such container"}`))
		}
	})
	mux.HandleFunc("GET /containers/json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode([]any{map[string]any{
			"Id": webContainer, "Names": []string{"/other/alias", "/web"}, "Ports": []any{}, "NetworkSettings": networks,
		}})
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done() // nothing happens
	})
	serveUnix(t, path, mux)
	t.Setenv("DOCKER_HOST", "unix://"+path)
}

func TestEngineHost(t *testing.T) {
	tests := []struct {
		name    string
		env     map[string]string
		config  string // Docker's config.json
		context string // the address in the context "lab"
		want    string
		wantErr string
	}{
		{"nothing says anything", nil, "", "", "unix:///var/run/docker.sock", ""},
		{"DOCKER_HOST wins", map[string]string{"DOCKER_HOST": "unix:///run/a.sock"}, `{"currentContext":"lab"}`, "unix:///run/b.sock", "unix:///run/a.sock", ""},
		{"the current context", nil, `{"currentContext":"lab"}`, "unix:///run/b.sock", "unix:///run/b.sock", ""},
		{"DOCKER_CONTEXT over the current one", map[string]string{"DOCKER_CONTEXT": "lab"}, `{"currentContext":"home"}`, "unix:///run/b.sock", "unix:///run/b.sock", ""},
		{"the default context has no file", nil, `{"currentContext":"default"}`, "", "unix:///var/run/docker.sock", ""},
		{"a context that is gone", nil, `{"currentContext":"lab"}`, "", "", `docker context "lab": `},
		{"a context without an engine", nil, `{"currentContext":"lab"}`, " ", "", "no engine address"},
		{"a broken config.json", nil, `{`, "", "", "config.json: unexpected end of JSON input"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, k := range []string{"DOCKER_HOST", "DOCKER_CONTEXT"} {
				t.Setenv(k, tt.env[k])
			}
			t.Setenv("DOCKER_CONFIG", dir)
			if tt.config != "" {
				require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(tt.config), 0o600))
			}
			if tt.context != "" {
				// The folder's name is `printf lab | sha256sum`.
				lab := filepath.Join(dir, "contexts/meta/a51146d38077ff992eba84cf1d5e9b249073503eb74868699016153b031a38f7")
				require.NoError(t, os.MkdirAll(lab, 0o700))
				endpoints := map[string]any{}
				if tt.context != " " {
					endpoints["docker"] = map[string]any{"Host": tt.context}
				}
				meta, err := json.Marshal(map[string]any{"Name": "lab", "Endpoints": endpoints})
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(filepath.Join(lab, "meta.json"), meta, 0o600))
			}
			got, err := engineHost()
			if tt.wantErr != "" {
				require.ErrorContains(t, err, tt.wantErr)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestAnEngineElsewhereIsRefused(t *testing.T) {
	t.Setenv("DOCKER_HOST", "ssh://root@192.0.2.1")
	_, err := openEngine()
	require.EqualError(t, err, "engine ssh://root@192.0.2.1 is not on this host; set DOCKER_HOST=unix:///var/run/docker.sock")
}

func TestEngineContainers(t *testing.T) {
	fakeEngine(t)
	e, err := openEngine()
	require.NoError(t, err)
	web := container{webContainer, "web", []string{webEndpoint}}

	got, err := e.container(context.Background(), "web")
	require.NoError(t, err)
	assert.Equal(t, web, got)
	list, err := e.running(context.Background())
	require.NoError(t, err)
	assert.Equal(t, []container{web}, list)

	_, err = e.container(context.Background(), "nobody/else")
	require.ErrorIs(t, err, errNoContainer)
	_, err = e.container(context.Background(), "broken")
	require.ErrorContains(t, err, "500 Internal Server Error out of luck")
}
