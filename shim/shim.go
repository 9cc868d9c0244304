// Package shim is a Docker API endpoint that forwards to an engine and fills in
// what the engine leaves out: the ports that a network plugin publishes.
//
// A Shim is given the engine's socket and a Daemon, which knows the ports.
// Shim.Handler is the API; Shim.Watch tells the daemon which container has which
// endpoint. The two need not run together.
//
// # What is rewritten
//
//   - responses: GET /containers/json, /containers/{id}/json and /system/df get
//     the ports of containers on networks of Portolan; nothing else in them
//     changes, not even the order of their fields;
//   - the filters publish and expose of GET /containers/json are answered here;
//   - POST /networks/create: the driver "portolan" becomes the full name of the
//     installed plugin;
//   - with Config.TakeOver, POST /networks/create and /containers/create, which
//     make Portolan's what would be Docker's own bridge's, and GET /info, which
//     says so.
//
// All else passes as it is. So does what is above where the daemon does not
// answer or a body cannot be parsed: the shim never makes Docker less available.
//
// # Ownership
//
// A request's goroutines end with it, and a connection that was upgraded ends
// with its client or the engine. Idle connections to the engine are closed after
// idleTime.
package shim

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/portolan/portolan/portmap"
)

// Config is what a Shim needs.
type Config struct {
	// Engine is the path of the engine's unix socket.
	Engine string
	Daemon Daemon
	// TakeOver makes Portolan networks of those that are created without a
	// driver or with Docker's bridge, and puts containers that publish ports
	// without naming a network on a Portolan network of that name.
	TakeOver bool
	// Options are the network options that the driver knows. With TakeOver a
	// network that has another one stays Docker's, whose bridge ignores it.
	Options []string
	Log     *slog.Logger // nil is silent
}

// Daemon is the Portolan daemon. Every method is an error when no daemon
// answers, and returns soon after its context has ended.
type Daemon interface {
	// Endpoints are those of now, by ID. The map is the caller's.
	Endpoints(ctx context.Context) (map[string]Endpoint, error)
	// Socket is the path of the socket on which the daemon answers. The engine
	// knows the driver by that of the file, or by the plugin that has the folder.
	Socket(ctx context.Context) (string, error)
	// SetOwner says which container an endpoint belongs to.
	SetOwner(ctx context.Context, endpoint string, o Owner) error
}

// Endpoint is what the daemon knows of an endpoint. Mappings are empty where it
// does not publish the ports of its container.
type Endpoint struct {
	portmap.Publication
	Exposed []portmap.ExposedPort
	// Owner is what SetOwner has said, the zero Owner before.
	Owner Owner
}

// Owner is the container of an endpoint.
type Owner struct {
	ContainerID   string
	ContainerName string // without the leading slash
}

// Shim is a Docker API endpoint in front of an engine. It is safe for concurrent
// use.
type Shim struct {
	cfg    Config
	engine *engine
	// daemonUp and engineUp log when either stops answering, and when it does
	// again.
	daemonUp, engineUp outage
	// stuck: the daemon did not answer the last question within askTime. One
	// request at a time is probing it then.
	stuck, probing atomic.Bool
	// making is held by the request that makes the default network.
	making chan struct{}
}

// New returns a Shim. It connects to nothing before it is used.
func New(cfg Config) *Shim {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Shim{
		cfg:      cfg,
		engine:   newEngine(cfg.Engine),
		daemonUp: outage{log: cfg.Log, lost: "the Portolan daemon does not answer; ports of its networks are not shown", back: "the Portolan daemon answers again"},
		engineUp: outage{log: cfg.Log, lost: "the engine does not answer", back: "the engine answers again"},
		making:   make(chan struct{}, 1),
	}
}

// Handler is the Docker API. Its server must speak HTTP/1 alone, without
// timeouts for bodies: a client's HTTP/2 goes to the engine as it comes.
func (s *Shim) Handler() http.Handler { return http.HandlerFunc(s.serve) }

func (s *Shim) serve(w http.ResponseWriter, r *http.Request) {
	path := unversioned(r.URL.Path)
	get, post := r.Method == http.MethodGet, r.Method == http.MethodPost
	switch {
	case get && path == "/containers/json":
		s.list(w, r)
	case get && between(path, "/containers/", "/json"):
		s.forward(w, r, s.fill(r.Context(), editInspect))
	case get && path == "/system/df":
		s.forward(w, r, s.fill(r.Context(), editDiskUsage))
	case get && path == "/info" && s.cfg.TakeOver:
		s.forward(w, r, warn(http.StatusOK, takeOverWarning))
	case post && path == "/networks/create":
		s.createNetwork(w, r)
	case post && path == "/containers/create" && s.cfg.TakeOver:
		s.createContainer(w, r)
	case hijacks(r, path):
		s.tunnel(w, r)
	default:
		s.forward(w, r, nil)
	}
}

// unversioned is a path without the API version that may begin it, as in
// /v1.41/info.
func unversioned(path string) string {
	rest, ok := strings.CutPrefix(path, "/v")
	if !ok {
		return path
	}
	version, rest, ok := strings.Cut(rest, "/")
	if !ok || version == "" || strings.Trim(version, "0123456789.") != "" {
		return path
	}
	return "/" + rest
}

// between says whether path has something between prefix and suffix, which may
// have slashes, as the engine's own routes allow.
func between(path, prefix, suffix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return false
	}
	name, ok := strings.CutSuffix(rest, suffix)
	return ok && name != ""
}
