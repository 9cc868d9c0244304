package shim

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// recorder is an engine that remembers what it was asked, and answers /early before
// it has read the body.
type recorder struct {
	mu    sync.Mutex // guards below
	paths []string
}

func (e *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/early" {
		_ = http.NewResponseController(w).EnableFullDuplex()
	} else {
		_, _ = io.Copy(io.Discard, r.Body) // a body that breaks off is of no concern here
	}
	e.mu.Lock()
	e.paths = append(e.paths, r.URL.Path)
	e.mu.Unlock()
	writeJSON(w, http.StatusNotFound, `{"message":"page not found"}`)
}

func (e *recorder) asked() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string{}, e.paths...)
}

// Whoever may use the shim may use the engine, but not the daemon: its methods
// are paths like others, and the engine does not know them.
func TestNobodyReachesTheDaemon(t *testing.T) {
	e := &recorder{}
	r := newRig(t, e.ServeHTTP)
	paths := []string{
		"/Portolan.Cleanup", "/Portolan.SetOwner", "/Portolan.List", "/v1.41/Portolan.Cleanup",
		"/NetworkDriver.DeleteNetwork", "/Plugin.Activate", "/containers/../Portolan.Cleanup",
	}
	for _, p := range paths {
		resp, _ := r.do(http.MethodPost, p, "{}")
		assert.Equal(t, http.StatusNotFound, resp.StatusCode, p)
	}
	assert.Equal(t, paths, e.asked())
	r.daemon.set(func(d *daemon) {
		assert.Zero(t, d.told)
		assert.Zero(t, d.asked)
	})
}

// A request whose end two readers could see in two places reaches the engine not
// at all, or with one end.
func TestNoSecondRequestWithinOne(t *testing.T) {
	const hidden = "POST /hidden HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n"
	for _, path := range []string{"/images/load", "/containers/c1/attach"} { // forwarded, and joined
		for name, request := range map[string]string{
			"two lengths":                "Content-Length: 0\r\nContent-Length: 60\r\n\r\n" + hidden,
			"a length with a sign":       "Content-Length: +0\r\n\r\n" + hidden,
			"an unknown encoding":        "Transfer-Encoding: xchunked\r\nContent-Length: 60\r\n\r\n" + hidden,
			"two encodings":              "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden,
			"a blank before the colon":   "Transfer-Encoding : chunked\r\nContent-Length: 60\r\n\r\n" + hidden,
			"a line feed in the header":  "X: a\nTransfer-Encoding: xchunked\r\n\r\n" + hidden,
			"a chunk that is not hex":    "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + hidden,
			"a header that is continued": "X: a\r\n Transfer-Encoding: chunked\r\n : b\r\nContent-Length: 60\r\nContent-Length: 0\r\n\r\n" + hidden,
		} {
			t.Run(path+" "+name, func(t *testing.T) {
				e := &recorder{}
				r := newRig(t, e.ServeHTTP)
				c := dial(t, r.api)
				require.NoError(t, c.SetDeadline(time.Now().Add(soon)))
				_, err := io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: docker\r\n"+request)
				require.NoError(t, err)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				require.NoError(t, err)
				assert.GreaterOrEqual(t, resp.StatusCode, 400)
				c.Close()
				r.quiet()
				for _, p := range e.asked() {
					assert.Equal(t, path, p)
				}
			})
		}
	}
}

// An engine may answer before it has read the body. What follows a body that breaks
// off after that is no request.
func TestNoSecondRequestAfterAnEarlyAnswer(t *testing.T) {
	e := &recorder{}
	r := newRig(t, e.ServeHTTP)
	resp, _ := r.do(http.MethodPost, "/whole", "{}")
	assert.False(t, resp.Close, "the connection of a body that has ended is for the next one")
	c := dial(t, r.api)
	require.NoError(t, c.SetDeadline(time.Now().Add(soon)))
	_, err := io.WriteString(c, "POST /early HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	require.NoError(t, err)
	resp, err = http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	assert.True(t, resp.Close)
	_, _ = io.WriteString(c, "zz\r\nPOST /hidden HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n") // it may be closed
	_, _ = io.Copy(io.Discard, c)
	r.quiet()
	assert.Equal(t, []string{"/whole", "/early"}, e.asked())
}

// What two readers agree on is one request and its body.
func TestEncodingWinsOverLength(t *testing.T) {
	e := &recorder{}
	r := newRig(t, e.ServeHTTP)
	for _, path := range []string{"/images/load", "/containers/c1/attach"} {
		c := dial(t, r.api)
		require.NoError(t, c.SetDeadline(time.Now().Add(soon)))
		body := "5\r\nhello\r\n0\r\n\r\n"
		_, err := io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
		require.NoError(t, err)
		text, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, 1, strings.Count(string(text), "HTTP/1.1 "), "%s", text)
	}
	assert.Equal(t, []string{"/images/load", "/containers/c1/attach"}, e.asked())
}
