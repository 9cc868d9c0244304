package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// idleTime is how long an unused connection to the engine is kept.
const idleTime = 30 * time.Second

// ioSize is the size in bytes of buffers that bodies go through. docker save is
// 5 % slower with half of it, and no faster with twice as much: a unix socket
// holds about that.
const ioSize = 128 << 10

// The answers of the engine that a caller tells apart.
var (
	errNotFound = errors.New("not found")
	errConflict = errors.New("conflict")
)

// engine is the Docker engine behind a unix socket.
type engine struct {
	socket string
	// kept reuses connections; fresh makes one for each request. A connection
	// that ended while it was idle is noticed when a request has been sent on
	// it, and only a request without consequences may be sent again.
	kept, fresh *http.Transport
}

func newEngine(socket string) *engine {
	e := &engine{socket: socket}
	e.kept, e.fresh = e.transport(), e.transport()
	e.kept.ReadBufferSize = ioSize   // downloads are GETs,
	e.fresh.WriteBufferSize = ioSize // and uploads are not
	e.fresh.DisableKeepAlives = true
	e.fresh.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := e.dial(ctx)
		if lost, ok := ctx.Value(lostKey{}).(func(error)); ok && err == nil {
			return &watchedConn{Conn: c, lost: lost}, nil
		}
		return c, err
	}
	return e
}

// lostKey is the context's key of what to do when the engine goes away before it
// has answered anything: a func(error).
type lostKey struct{}

// watchedConn calls lost if nothing could be read.
type watchedConn struct {
	net.Conn
	lost func(error)
	some bool // has been read
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.some = c.some || n > 0
	if err != nil && !c.some && !errors.Is(err, net.ErrClosed) {
		c.lost(err)
	}
	return n, err
}

func (e *engine) transport() *http.Transport {
	return &http.Transport{
		DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return e.dial(ctx) },
		DisableCompression:    true, // or Accept-Encoding is added
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       idleTime,
		ExpectContinueTimeout: time.Second,
	}
}

func (e *engine) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", e.socket)
}

// RoundTrip chooses the connection.
func (e *engine) RoundTrip(r *http.Request) (*http.Response, error) {
	if (r.Method == http.MethodGet || r.Method == http.MethodHead) && (r.Body == nil || r.Body == http.NoBody) {
		return e.kept.RoundTrip(r)
	}
	return e.fresh.RoundTrip(r)
}

// get decodes what the engine has at a path. That has no API version: the engine
// then answers in its newest, and the few fields that are read here have not
// changed since 2015. The error wraps errNotFound where there is nothing.
func (e *engine) get(ctx context.Context, path string, v any) error {
	return e.call(ctx, http.MethodGet, path, nil, v)
}

// call sends a request of our own, with body as JSON unless it is nil, and
// decodes the answer into v unless that is nil.
func (e *engine) call(ctx context.Context, method, path string, body, v any) error {
	resp, err := e.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if v == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("ask the engine: %s %s: %w", method, path, err)
	}
	return nil
}

// send returns a response of status 2xx, whose body the caller closes.
func (e *engine) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, content)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := (&http.Client{Transport: e}).Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // without a method and an address that nobody typed
		}
		return nil, fmt.Errorf("ask the engine: %w", err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	var refusal struct {
		Message string `json:"message"`
	}
	// Without a message the status says enough.
	_ = json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&refusal)
	err = errors.New(resp.Status)
	switch resp.StatusCode {
	case http.StatusNotFound:
		err = errNotFound
	case http.StatusConflict:
		err = errConflict
	}
	return nil, fmt.Errorf("ask the engine: %s %s: %w: %s", method, path, err, refusal.Message)
}
