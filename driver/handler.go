package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/portolan/portolan/internal/fault"
)

const (
	// callLimit bounds a call: an engine that was restarted has no limit of its
	// own for managed plugins, and hangs with a driver that hangs.
	callLimit = 60 * time.Second
	// waitLimit bounds the waits within a call, so that its error says what it
	// waited for before callLimit cuts it off.
	waitLimit = 45 * time.Second
	// maxBody is several times what an engine sends for all ports of both
	// protocols.
	maxBody = 64 << 20
)

// Handler returns the remote driver protocol, and our own API beside it. Calls
// other than Activate, GetCapabilities and Version wait until Restore has
// returned.
//
// A call that cannot be done is answered with status 200 and {"Err": "…"}: the
// engine then shows "remote: " and the text, where with a status of 500 it
// would show the name of a protocol method that nobody has typed. A body that
// is not a request is answered with 400, and an unknown path with 404; both
// have {"Err": "…"} too.
func (d *Driver) Handler() http.Handler {
	mux := http.NewServeMux()
	now, ready := routes{d, mux, false}, routes{d, mux, true}
	handleEmpty(now, "/Plugin.Activate", d.activate)
	handleEmpty(now, "/NetworkDriver.GetCapabilities", d.capabilities)
	handleEmpty(now, "/Portolan.Version", d.version)

	handle(ready, "/NetworkDriver.GwAllocCheck", d.gwAllocCheck)
	handle(ready, "/NetworkDriver.CreateNetwork", d.createNetwork)
	handle(ready, "/NetworkDriver.DeleteNetwork", d.deleteNetwork)
	handle(ready, "/NetworkDriver.CreateEndpoint", d.createEndpoint)
	handle(ready, "/NetworkDriver.EndpointOperInfo", d.operInfo)
	handle(ready, "/NetworkDriver.DeleteEndpoint", d.deleteEndpoint)
	handle(ready, "/NetworkDriver.Join", d.join)
	handle(ready, "/NetworkDriver.Leave", d.leave)
	handle(ready, "/NetworkDriver.ProgramExternalConnectivity", d.programExternal)
	handle(ready, "/NetworkDriver.RevokeExternalConnectivity", d.revokeExternal)
	// Sent to drivers of global scope only; those of local scope have nothing
	// to allocate, and nothing to learn from other machines.
	handle(ready, "/NetworkDriver.AllocateNetwork", acknowledge[networkRequest])
	handle(ready, "/NetworkDriver.FreeNetwork", acknowledge[networkRequest])
	handle(ready, "/NetworkDriver.DiscoverNew", acknowledge[network.DiscoveryNotification])
	handle(ready, "/NetworkDriver.DiscoverDelete", acknowledge[network.DiscoveryNotification])

	handleEmpty(ready, "/Portolan.List", d.list)
	handleEmpty(ready, "/Portolan.Status", d.status)
	handle(ready, "/Portolan.SetOwner", d.setOwner)
	handleEmpty(ready, "POST /Portolan.Cleanup", d.cleanup)

	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusNotFound, errorResponse(fmt.Errorf("%s is not a method of this plugin", r.URL.Path)))
	})
	return mux
}

func (d *Driver) activate(context.Context, nothing) (any, error) {
	return map[string][]string{"Implements": {"NetworkDriver"}}, nil
}

func (d *Driver) capabilities(context.Context, nothing) (*capabilitiesResponse, error) {
	return &capabilitiesResponse{
		CapabilitiesResponse: network.CapabilitiesResponse{
			Scope:             network.LocalScope,
			ConnectivityScope: network.LocalScope,
		},
		GwAllocChecker: true,
	}, nil
}

func acknowledge[Req any](context.Context, Req) (nothing, error) { return nothing{}, nil }

// routes is where paths are registered, and whether their calls wait for
// Restore.
type routes struct {
	d        *Driver
	mux      *http.ServeMux
	restored bool
}

// handle registers f for requests with a body.
func handle[Req, Resp any](rt routes, path string, f func(context.Context, Req) (Resp, error)) {
	rt.bounded(path, func(ctx context.Context, w http.ResponseWriter, r *http.Request) (any, error) {
		var req Req
		if r.ContentLength > rt.d.maxBody { // known before it is read
			return nil, badRequest{&http.MaxBytesError{Limit: rt.d.maxBody}}
		}
		body := http.MaxBytesReader(w, r.Body, rt.d.maxBody)
		var err error
		if s, ok := any(&req).(streamed); ok {
			err = decodeStream(body, s)
		} else {
			err = decode(body, &req)
		}
		if err != nil {
			return nil, badRequest{err}
		}
		if c, ok := any(req).(interface{ check() error }); ok {
			if err := c.check(); err != nil {
				return nil, badRequest{err}
			}
		}
		resp, err := f(ctx, req)
		if fault.On {
			fault.Point("answer " + path)
		}
		return resp, err
	})
}

// handleEmpty registers f for requests without a body.
func handleEmpty[Resp any](rt routes, path string, f func(context.Context, nothing) (Resp, error)) {
	rt.bounded(path, func(ctx context.Context, _ http.ResponseWriter, _ *http.Request) (any, error) {
		return f(ctx, nothing{})
	})
}

type call func(ctx context.Context, w http.ResponseWriter, r *http.Request) (any, error)

// bounded registers do with everything that all calls have in common.
func (rt routes) bounded(path string, do call) {
	serve := func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), waitLimit)
		defer cancel()
		start := time.Now()
		resp, err := rt.answer(ctx, w, r, do)
		log := rt.d.log.With("call", r.URL.Path, "took", time.Since(start))
		if err == nil {
			log.Debug("call")
			reply(w, http.StatusOK, resp)
			return
		}
		// The engine only logs what it hears on teardown, and not where an
		// administrator of this daemon would look.
		log.Warn("call failed", "err", err)
		status := http.StatusOK
		if _, bad := errors.AsType[badRequest](err); bad {
			status = http.StatusBadRequest
		}
		reply(w, status, errorResponse(err))
	}
	late, _ := json.Marshal(errorResponse(fmt.Errorf("gave up after %s; the log of the Portolan daemon may say more", callLimit)))
	limited := http.TimeoutHandler(http.HandlerFunc(serve), callLimit, string(late))
	rt.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType) // of the late answer too
		limited.ServeHTTP(w, r)
	})
}

// answer runs do once it may run. A panic becomes an error.
func (rt routes) answer(ctx context.Context, w http.ResponseWriter, r *http.Request, do call) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			rt.d.log.Error("panic in a call", "call", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error, please report what the log of the Portolan daemon says: %v", p)
		}
	}()
	if rt.restored {
		select {
		case <-rt.d.restored:
		case <-ctx.Done():
			return nil, errors.New("the Portolan daemon is still restoring its state, try again in a minute")
		}
		if err := rt.d.restoreErr; err != nil {
			return nil, fmt.Errorf("the Portolan daemon could not restore its state, try again in a minute: %w", err)
		}
	}
	return do(ctx, w, r)
}

// badRequest is an error of the one who asks: no request at all.
type badRequest struct{ error }

func (e badRequest) Unwrap() error { return e.error }

// errEmptyRequest is what an engine's retry sends when the plugin died during the
// first attempt.
var errEmptyRequest = errors.New("empty request: the Portolan daemon was perhaps restarted during the call; try again")

// decode reads one JSON value, which must be all there is.
func decode(body io.Reader, v any) error {
	dec := json.NewDecoder(body)
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return errEmptyRequest
		}
		return fmt.Errorf("decode the request: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return fmt.Errorf("decode the request: %w", tooLarge)
		}
		return errors.New("decode the request: there is more after its end")
	}
	return nil
}

// errorResponse has err in one line, as the engine shows it to whoever typed
// the command.
func errorResponse(err error) *network.ErrorResponse {
	return network.NewErrorResponse(strings.ReplaceAll(err.Error(), "\n", "; "))
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the engine has gone; it will ask again
}
