package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// errLeft says that a response was left as it is although it had to be edited.
var errLeft = errors.New("a response that cannot be edited")

// forward sends a request to the engine and its response to the client, as it
// comes, but for rw.
func (s *Shim) forward(w http.ResponseWriter, r *http.Request, rw *rewrite) {
	// Neither is made up where the engine has sent none.
	w.Header()["Content-Type"], w.Header()["Date"] = nil, nil
	// The engine may answer while it reads, as docker load's progress does. A
	// server would otherwise drop the rest of the body. HTTP/1 has it.
	client := http.NewResponseController(w)
	_ = client.EnableFullDuplex()
	body := &clientBody{ReadCloser: r.Body, client: client}
	in := r.WithContext(context.WithValue(r.Context(), lostKey{}, body.lost))
	in.Body = body
	proxy := httputil.ReverseProxy{
		Rewrite:       outgoing,
		Transport:     s.engine,
		FlushInterval: -1,
		BufferPool:    &copyBuffers,
		ErrorLog:      slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		ModifyResponse: func(resp *http.Response) error {
			s.engineUp.note(nil)
			if body.open(r) {
				resp.Header.Set("Connection", "close")
			}
			if rw == nil || resp.StatusCode != rw.status || rw.apply(resp) || rw.otherwise == nil {
				return nil
			}
			return errLeft
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if body.open(r) {
				w.Header().Set("Connection", "close")
			}
			if errors.Is(err, errLeft) {
				rw.otherwise()
				return
			}
			if lost := body.engine.Load(); lost != nil {
				s.unavailable(w, *lost) // the context has ended with the body
				return
			}
			if failed := body.failed.Load(); failed != nil && r.Context().Err() == nil {
				message(w, http.StatusBadRequest, "read the request's body: "+(*failed).Error())
				return
			}
			s.refuse(w, r, err)
		},
	}
	proxy.ServeHTTP(w, in)
	if body.open(r) {
		// Whoever still sends is to see the answer before the end of the connection.
		_ = client.Flush()
		select {
		case <-time.After(linger):
		case <-r.Context().Done():
		}
	}
}

// linger is how long net/http, too, waits before it closes a connection on which
// the client still sends (rstAvoidanceDelay): it does not where it does not know of
// that.
const linger = 500 * time.Millisecond

// clientBody remembers why a request's body could not be read, which is not the
// engine's fault. A connection whose body has broken off, or may yet do so, is
// closed after the answer: a full-duplex server would take what is left for the
// next request.
type clientBody struct {
	io.ReadCloser
	client *http.ResponseController
	ended  atomic.Bool
	failed atomic.Pointer[error]
	engine atomic.Pointer[error] // why the engine went away before it answered
}

// open says whether there may be more of the request's body to come.
func (b *clientBody) open(r *http.Request) bool { return r.ContentLength != 0 && !b.ended.Load() }

func (b *clientBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == io.EOF: //nolint:errorlint // as every reader says it
		b.ended.Store(true)
	case err != nil:
		b.failed.Store(&err)
	}
	return n, err
}

// lost ends the wait for more of the body: the engine has gone, and a transport
// does not say so before the client has sent something.
func (b *clientBody) lost(err error) {
	if b.ended.Load() {
		return // the transport says so
	}
	b.engine.Store(&err)
	_ = b.client.SetReadDeadline(time.Now())
}

// outgoing undoes what ReverseProxy does for proxies between networks: the
// engine gets path, query and headers as the client has written them.
func outgoing(pr *httputil.ProxyRequest) {
	in, out := pr.In, pr.Out
	*out.URL = *in.URL
	out.URL.Scheme, out.URL.Host = "http", "docker"
	path, _, _ := strings.Cut(in.RequestURI, "?")
	if strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//") {
		out.URL.Opaque = path // EscapedPath escapes what need not be
	}
	for name, values := range in.Header {
		if name == "Forwarded" || strings.HasPrefix(name, "X-Forwarded-") {
			out.Header[name] = values
		}
	}
	out.Trailer = in.Trailer // filled in when the body has been read
}

// refuse answers a request that the engine did not answer. A client that has
// left gets nothing.
func (s *Shim) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil || errors.Is(err, context.Canceled) {
		panic(http.ErrAbortHandler)
	}
	s.unavailable(w, err)
}

// unavailable says that the engine does not answer.
func (s *Shim) unavailable(w http.ResponseWriter, err error) {
	s.engineUp.note(err)
	message(w, http.StatusServiceUnavailable, fmt.Sprintf("the engine does not answer on %s: %v", s.cfg.Engine, cause(err)))
}

// message is an error in the engine's form.
func message(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The client may have left.
	_ = json.NewEncoder(w).Encode(struct {
		Message string `json:"message"`
	}{text})
}

// cause is an error without what net and net/http put around it, which repeats
// the socket.
func cause(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return err
}

// copyBuffers are for copying bodies.
var copyBuffers = buffers{sync.Pool{New: func() any { return new([ioSize]byte) }}}

// buffers is a pool for httputil.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte { return b.pool.Get().(*[ioSize]byte)[:] }

func (b *buffers) Put(buf []byte) { b.pool.Put((*[ioSize]byte)(buf)) }
