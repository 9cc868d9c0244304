package shim

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	code := m.Run()
	// A server that has refused a body leaves the client half a second.
	leak := goleak.Find()
	for end := time.Now().Add(soon); leak != nil && time.Now().Before(end); {
		leak = goleak.Find()
	}
	if leak != nil {
		fmt.Fprintln(os.Stderr, leak)
		code = max(code, 1)
	}
	os.Exit(code)
}

// soon is how long something may take that takes no time on an idle machine.
const soon = 20 * time.Second

// eventually waits for cond.
func eventually(t testing.TB, cond func() bool, what string) {
	t.Helper()
	require.Eventually(t, cond, soon, 5*time.Millisecond, what)
}

// receive waits for something on a channel.
func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(soon):
		require.FailNow(t, "nothing came", what)
	}
	panic("unreachable")
}

// rig is an engine of the test's, a shim before it, and clients of both.
type rig struct {
	t      testing.TB
	shim   *Shim
	daemon *daemon
	logged *logged
	// The paths of the two sockets.
	engine, api string
	stopEngine  func()
	serving     atomic.Int32 // requests that the shim has not finished
}

// newRig starts an engine that is a handler. The daemon knows nothing.
func newRig(t testing.TB, engine http.HandlerFunc, change ...func(*Config)) *rig {
	dir, err := os.MkdirTemp("", "shim-") // t.TempDir is too long for a socket's path
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{
		t: t, daemon: &daemon{}, logged: &logged{},
		engine: filepath.Join(dir, "engine.sock"), api: filepath.Join(dir, "api.sock"),
	}
	cfg := Config{
		Engine: r.engine, Daemon: r.daemon,
		Log: slog.New(slog.NewTextHandler(r.logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&cfg)
	}
	r.shim = New(cfg)
	t.Cleanup(r.shim.engine.kept.CloseIdleConnections)
	if engine != nil {
		r.startEngine(engine)
	}
	serve(t, r.api, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.serving.Add(1)
		defer r.serving.Add(-1)
		r.shim.Handler().ServeHTTP(w, req)
	})})
	return r
}

// quiet waits until the shim has finished all requests.
func (r *rig) quiet() {
	r.t.Helper()
	eventually(r.t, func() bool { return r.serving.Load() == 0 }, "the shim finishes")
}

// startEngine starts another engine after stopEngine. Like engine 29 it speaks
// HTTP/2 to who begins with it.
func (r *rig) startEngine(engine http.HandlerFunc) {
	srv := &http.Server{Handler: engine, Protocols: &http.Protocols{}}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	r.stopEngine = serve(r.t, r.engine, srv)
}

// serve serves HTTP on a unix socket until the test ends, or stop is called.
func serve(t testing.TB, path string, srv *http.Server) (stop func()) {
	ln, err := net.Listen("unix", path)
	require.NoError(t, err)
	srv.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	go srv.Serve(ln)
	stop = func() {
		ln.Close() // Serve may not have begun
		srv.Close()
	}
	t.Cleanup(stop)
	return stop
}

func dial(t *testing.T, path string) *net.UnixConn {
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

// client is an HTTP client of a socket.
func client(t testing.TB, path string) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		DisableCompression:    true,
		ExpectContinueTimeout: soon,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// do sends a request to the shim and returns the response and its body.
func (r *rig) do(method, path, body string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://docker"+path, bytes.NewBufferString(body))
	require.NoError(r.t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client(r.t, r.api).Do(req)
	require.NoError(r.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(r.t, err)
	return resp, string(text)
}

func (r *rig) get(path string) string {
	r.t.Helper()
	resp, body := r.do(http.MethodGet, path, "")
	require.Equal(r.t, http.StatusOK, resp.StatusCode, body)
	return body
}

// writeJSON answers as the engine does: chunked if it is long.
func writeJSON(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// always answers every request alike.
func always(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, status, body) }
}

// daemon is a Daemon with state. It knows no endpoint but those it was given.
type daemon struct {
	mu        sync.Mutex // guards below
	endpoints map[string]Endpoint
	away      error         // what every method says, if not nil
	stuck     chan struct{} // methods wait for it, if not nil
	socket    string        // "" is that of a daemon that is no plugin
	refused   string        // an endpoint that SetOwner does not take
	told      int           // calls of SetOwner
	asked     int
}

func (d *daemon) set(f func(*daemon)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}

func (d *daemon) Endpoints(ctx context.Context) (map[string]Endpoint, error) {
	d.mu.Lock()
	d.asked++
	stuck := d.stuck
	d.mu.Unlock()
	if stuck != nil {
		select {
		case <-stuck:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.endpoints), d.away
}

func (d *daemon) Socket(context.Context) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return cmp.Or(d.socket, "/run/docker/plugins/portolan.sock"), d.away
}

func (d *daemon) SetOwner(_ context.Context, id string, o Owner) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away != nil {
		return d.away
	}
	ep, ok := d.endpoints[id]
	if !ok || id == d.refused {
		return errors.New("not known to Portolan")
	}
	d.told++
	ep.Owner = o
	d.endpoints[id] = ep
	return nil
}

// owner is what the daemon was told of an endpoint.
func (d *daemon) owner(id string) Owner {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endpoints[id].Owner
}

// logged is what a shim has logged.
type logged struct {
	mu   sync.Mutex // guards below
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) count(line string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.text.Bytes(), []byte(line))
}

// versions are the engines whose answers are in testdata.
var versions = []string{"20.10", "29"}

func fixture(t testing.TB, version, name string) string {
	text, err := os.ReadFile(filepath.Join("testdata", version, name))
	require.NoError(t, err)
	return string(text)
}

// fixtureEndpoints are what the daemon knew when the answers were recorded.
func fixtureEndpoints(t testing.TB, version string) map[string]Endpoint {
	var endpoints map[string]Endpoint
	require.NoError(t, json.Unmarshal([]byte(fixture(t, version, "endpoints.json")), &endpoints))
	require.NotEmpty(t, endpoints)
	return endpoints
}
