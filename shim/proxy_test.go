package shim

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// reflect answers with all that an engine sees of a request.
func reflect(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s host %q close %v length %d %v\n", r.Method, r.RequestURI, r.Proto, r.Host, r.Close, r.ContentLength, r.TransferEncoding)
	for _, h := range []http.Header{r.Header, r.Trailer} {
		var lines []string
		for name, values := range h {
			lines = append(lines, fmt.Sprintf("%s: %q\n", name, values))
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	fmt.Fprintf(&b, "%q %v\n", body, err)
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("X-Echo", r.Header.Get("X-Echo"))
	if r.URL.Query().Get("status") == "409" {
		w.WriteHeader(http.StatusConflict)
	}
	_, _ = io.WriteString(w, b.String())
}

// exchange sends bytes to a socket and returns the status, headers and body of
// the response.
func exchange(t *testing.T, path, request string) (string, http.Header, string) {
	c := dial(t, path)
	_, err := io.WriteString(c, request)
	require.NoError(t, err)
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	c.Close()
	for name, values := range resp.Trailer {
		resp.Header["Trailer "+name] = values
	}
	resp.Header.Del("Date")
	resp.Header.Del("Trailer") // the trailers themselves count
	resp.Header["Length"] = []string{fmt.Sprint(resp.ContentLength, resp.TransferEncoding)}
	return resp.Proto + " " + resp.Status, resp.Header, string(body)
}

// The engine sees what the client has sent, and the reverse.
func TestTransparent(t *testing.T) {
	const end = " HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n"
	tests := []struct{ name, request string }{
		{"get", "GET /v1.41/info" + end + "\r\n"},
		{"no version", "GET /info" + end + "\r\n"},
		{"own headers", "GET /info HTTP/1.1\r\nHost: other.example:1\r\nUser-Agent: Docker-Client/28 (linux)\r\nX-Registry-Auth: e30=\r\nX-Echo: a\r\nX-Echo: b\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"},
		{"forwarded headers", "GET /info HTTP/1.1\r\nHost: d\r\nForwarded: for=a\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: h\r\nConnection: close\r\n\r\n"},
		{"slashes", "GET //v1.41//images/a" + end + "\r\n"},
		{"escaped slash", "GET /images/a%2Fb%3ac/json" + end + "\r\n"},
		{"dots", "GET /v1.41/../images/./a/" + end + "\r\n"},
		{"bytes that are not escaped", "GET /images/a|b\"<>^`{}\xc3\xa4/json" + end + "\r\n"},
		{"odd query", "GET /events?a=1;b&&c=%zz&d=a|b\"" + end + "\r\n"},
		{"empty query", "GET /events?" + end + "\r\n"},
		{"whole address", "GET http://docker/info HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"},
		{"status", "GET /x?status=409" + end + "\r\n"},
		{"head", "HEAD /_ping" + end + "\r\n"},
		{"options", "OPTIONS *" + end + "\r\n"},
		{"http 1.0", "GET /_ping HTTP/1.0\r\n\r\n"},
		{"post", "POST /x" + end + "Content-Length: 5\r\nContent-Type: application/json\r\n\r\n{\"a\"}"},
		{"post of nothing", "POST /x" + end + "Content-Length: 0\r\n\r\n"},
		{"post without length", "POST /x" + end + "\r\n"},
		{"delete", "DELETE /containers/a?force=1" + end + "\r\n"},
		{"chunked", "POST /build" + end + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"},
		{"trailer", "POST /build" + end + "Te: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n"},
		{"network create that is no JSON", "POST /networks/create" + end + "Content-Length: 5\r\n\r\n{nope"},
		{"network create of nothing", "POST /v1.41/networks/create" + end + "Content-Length: 0\r\n\r\n"},
		{"network create of another driver", "POST /networks/create" + end + "Content-Length: 20\r\n\r\n{\"Driver\":\"macvlan\"}"},
	}
	r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Late")
		reflect(w, r)
		w.Header().Set("X-Late", "yes")
	})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, header, body := exchange(t, r.engine, tt.request)
			gotStatus, gotHeader, gotBody := exchange(t, r.api, tt.request)
			assert.Equal(t, status, gotStatus)
			assert.Equal(t, header, gotHeader)
			// The version of HTTP and the end of a connection are a matter of
			// each side alone, and a body of nothing may say so.
			neutral := strings.NewReplacer("close true", "close ?", "close false", "close ?",
				"Connection: [\"close\"]\n", "", "Content-Length: [\"0\"]\n", "", `HTTP/1.0 host ""`, `HTTP/1.1 host "docker"`, "GET http://docker/", "GET /")
			assert.Equal(t, neutral.Replace(body), neutral.Replace(gotBody))
		})
	}
}

// A response has no header that the engine has not sent.
func TestNoMadeUpHeaders(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Date"], w.Header()["Content-Type"] = nil, nil
		_, _ = io.WriteString(w, "<html>")
	})
	resp, body := r.do(http.MethodGet, "/x", "")
	assert.Equal(t, "<html>", body)
	assert.Equal(t, http.Header{"Content-Length": {"6"}}, resp.Header)
}

// The engine decides whether a body is wanted.
func TestExpectContinue(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		reflect(w, r)
	})
	for path, want := range map[string]string{"/yes": "100 Continue", "/networks/create": "100 Continue", "/no": "403 Forbidden"} {
		c := dial(t, r.api)
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n", path)
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, nil)
		require.NoError(t, err)
		assert.Equal(t, want, resp.Status, path)
		if resp.StatusCode != http.StatusContinue {
			continue
		}
		_, err = io.WriteString(c, "body")
		require.NoError(t, err)
		for resp.StatusCode == http.StatusContinue { // engine and shim may both say so
			resp, err = http.ReadResponse(in, nil)
			require.NoError(t, err)
		}
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		assert.Contains(t, string(body), `"body" <nil>`)
	}
}

// What either side sends reaches the other before the next comes.
func TestUnbuffered(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		assert.NoError(t, rc.EnableFullDuplex())
		assert.NoError(t, rc.Flush())
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "%s!\n", lines.Text())
			assert.NoError(t, rc.Flush())
		}
	})
	out, in := io.Pipe()
	req, err := http.NewRequest(http.MethodPost, "http://docker/v1.41/build", out)
	require.NoError(t, err)
	resp, err := client(t, r.api).Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	answers := bufio.NewScanner(resp.Body)
	for i := range 3 {
		fmt.Fprintf(in, "line %d\n", i)
		require.True(t, answers.Scan())
		assert.Equal(t, fmt.Sprintf("line %d!", i), answers.Text())
	}
	require.NoError(t, in.Close())
	assert.False(t, answers.Scan())
}

// Nor does a known length make anybody wait.
func TestUnbufferedLength(t *testing.T) {
	seen := make(chan bool)
	r := newRig(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "6")
		fmt.Fprint(w, "abc")
		assert.NoError(t, http.NewResponseController(w).Flush())
		<-seen
		fmt.Fprint(w, "def")
	})
	resp, err := client(t, r.api).Get("http://docker/containers/a/archive")
	require.NoError(t, err)
	defer resp.Body.Close()
	half := make([]byte, 3)
	_, err = io.ReadFull(resp.Body, half)
	require.NoError(t, err)
	close(seen)
	rest, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, "abcdef", string(half)+string(rest))
}

func TestLargeBodies(t *testing.T) {
	const size = 48 << 20
	sum := func(seed byte) (io.Reader, string) {
		rng := rand.NewChaCha8([32]byte{seed})
		h := sha256.New()
		_, err := io.CopyN(h, rng, size)
		require.NoError(t, err)
		return io.LimitReader(rand.NewChaCha8([32]byte{seed}), size), fmt.Sprintf("%x", h.Sum(nil))
	}
	up, upSum := sum(1)
	down, downSum := sum(2)
	r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		_, err := io.Copy(h, r.Body)
		assert.NoError(t, err)
		w.Header().Set("X-Sum", fmt.Sprintf("%x", h.Sum(nil)))
		_, err = io.Copy(w, down)
		assert.NoError(t, err)
	})
	resp, err := client(t, r.api).Post("http://docker/images/load", "application/x-tar", up)
	require.NoError(t, err)
	defer resp.Body.Close()
	h := sha256.New()
	_, err = io.Copy(h, resp.Body)
	require.NoError(t, err)
	assert.Equal(t, upSum, resp.Header.Get("X-Sum"))
	assert.Equal(t, downSum, fmt.Sprintf("%x", h.Sum(nil)))
}

// The engine may answer before it has read a body, and breaks off one that it
// cannot finish.
func TestEngineEndsEarly(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			writeJSON(w, 404, `{"message":"no such container"}`)
			return
		}
		_, _ = io.WriteString(w, strings.Repeat("x", 100))
		assert.NoError(t, http.NewResponseController(w).Flush())
		panic(http.ErrAbortHandler)
	})
	req, err := http.NewRequest(http.MethodPut, "http://docker/containers/a/archive", io.LimitReader(rand.NewChaCha8([32]byte{}), 64<<20))
	require.NoError(t, err)
	resp, err := client(t, r.api).Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, `{"message":"no such container"}`, string(body))

	for _, path := range []string{"/logs", "/containers/json"} {
		resp, err = client(t, r.api).Get("http://docker" + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.Len(t, body, 100, "what came before the end is there")
	}
}

func TestClientVanishes(t *testing.T) {
	for _, path := range []string{"/events", "/containers/json", "/containers/json?filters=%7B%22publish%22%3A%5B%2280%22%5D%7D"} {
		t.Run(path, func(t *testing.T) {
			started, ended := make(chan bool, 1), make(chan bool, 1)
			r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
				if path == "/events" {
					assert.NoError(t, http.NewResponseController(w).Flush())
				}
				started <- true
				<-r.Context().Done()
				ended <- true
			})
			r.daemon.endpoints = map[string]Endpoint{"e": {}}
			ctx, cancel := context.WithCancel(context.Background())
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
			require.NoError(t, err)
			done := make(chan error, 1)
			go func() {
				resp, err := client(t, r.api).Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				done <- err
			}()
			receive(t, started, "the request reaches the engine")
			cancel()
			receive(t, ended, "the engine sees the end")
			require.ErrorIs(t, receive(t, done, "the client returns"), context.Canceled)
			r.quiet()
			assert.Zero(t, r.logged.count("does not answer"), "nobody has failed")
		})
	}
}

func TestUploadBreaksOff(t *testing.T) {
	ended := make(chan error, 1)
	r := newRig(t, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		ended <- err
	})
	c := dial(t, r.api)
	fmt.Fprint(c, "POST /images/load HTTP/1.1\r\nHost: d\r\nContent-Length: 1000\r\n\r\nabc")
	require.NoError(t, c.CloseWrite())
	require.Error(t, receive(t, ended, "the engine's body ends"))
	r.quiet()
	assert.Zero(t, r.logged.count("does not answer"), "it is not the engine's fault")
}

// An engine that dies while a client thinks about the rest of its upload is
// reported at once, as without the shim.
func TestEngineDiesDuringUpload(t *testing.T) {
	for name, head := range map[string]string{
		"in chunks":      "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"of some length": "Content-Length: 1000\r\n\r\nabc",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
				_, err := io.ReadFull(r.Body, make([]byte, 3))
				assert.NoError(t, err)
				c, _, err := http.NewResponseController(w).Hijack()
				if assert.NoError(t, err) {
					c.Close()
				}
			})
			status, _, body := exchange(t, r.api, "POST /images/load HTTP/1.1\r\nHost: d\r\n"+head)
			assert.Equal(t, "HTTP/1.1 503 Service Unavailable", status)
			assert.Equal(t, fmt.Sprintf("{\"message\":\"the engine does not answer on %s: EOF\"}\n", r.engine), body)
			assert.Equal(t, 1, r.logged.count("the engine does not answer"))
		})
	}
}

func TestBadBody(t *testing.T) {
	r := newRig(t, reflect)
	status, _, body := exchange(t, r.api, "POST /images/load HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nwhat?\r\n")
	assert.Equal(t, "HTTP/1.1 400 Bad Request", status)
	assert.Equal(t, `{"message":"read the request's body: invalid byte in chunk length"}`+"\n", body)
	assert.Zero(t, r.logged.count("does not answer"), "it is not the engine's fault")
}

func TestEngineAway(t *testing.T) {
	r := newRig(t, nil)
	const want = `{"message":"the engine does not answer on %s: connect: no such file or directory"}` + "\n"
	for range 3 {
		for _, request := range []string{"GET /info", "GET /containers/json", "POST /containers/create", "POST /networks/create", "POST /containers/a/attach", "POST /exec/e/start"} {
			method, path, _ := strings.Cut(request, " ")
			resp, body := r.do(method, path, "")
			assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode, request)
			assert.Equal(t, "application/json", resp.Header.Get("Content-Type"))
			assert.Equal(t, fmt.Sprintf(want, r.engine), body)
		}
	}
	assert.Equal(t, 1, r.logged.count("the engine does not answer"), "once, not for each request")
	r.startEngine(always(200, `{}`))
	assert.Equal(t, `{}`, r.get("/info"))
	assert.Equal(t, 1, r.logged.count("the engine answers again"))
	r.stopEngine()
	require.ErrorIs(t, os.Remove(r.engine), os.ErrNotExist)
	_, body := r.do(http.MethodGet, "/info", "")
	assert.Equal(t, fmt.Sprintf(want, r.engine), body)
	assert.Equal(t, 2, r.logged.count("the engine does not answer"))
}

// After a restart of the engine nothing fails on a connection to the old one.
func TestEngineRestarts(t *testing.T) {
	r := newRig(t, always(200, "1"))
	for i := range 5 {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete, http.MethodGet} {
			resp, body := r.do(method, "/x", "")
			assert.Equal(t, http.StatusOK, resp.StatusCode, body)
		}
		r.stopEngine()
		r.startEngine(always(200, fmt.Sprint(i)))
	}
}

// An engine that ends between two requests may be noticed by the second one
// only. That must not be one that cannot be sent again.
func TestStaleConnection(t *testing.T) {
	r := newRig(t, nil)
	ln, err := net.Listen("unix", r.engine)
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				if _, err := http.ReadRequest(in); err != nil {
					return
				}
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				_, _ = in.ReadByte() // of the second request, which ends it
			}()
		}
	}()
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodGet, http.MethodDelete, http.MethodPut, http.MethodHead, http.MethodGet} {
		resp, body := r.do(method, "/x", "")
		assert.Equal(t, http.StatusOK, resp.StatusCode, "%s: %s", method, body)
	}
}

func TestCause(t *testing.T) {
	r := newRig(t, nil)
	_, err := client(t, r.engine).Get("http://docker/x")
	require.Error(t, err)
	assert.Equal(t, "connect: no such file or directory", cause(err).Error())
	other := errors.New("x")
	assert.Equal(t, other, cause(other))
}

// A response that is too long to be kept in memory passes all the same.
func TestTooLong(t *testing.T) {
	list := fixture(t, "20.10", "list.json")
	long := []byte(list[:len(list)-2] + strings.Repeat(" ", maxResponse) + "]\n")
	r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sized/containers/json" {
			w.Header().Set("Content-Length", fmt.Sprint(len(long)))
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(long)
	})
	r.daemon.endpoints = fixtureEndpoints(t, "20.10")
	for _, path := range []string{"/containers/json", "/containers/json?filters=%7B%22publish%22%3A%5B%2280%22%5D%7D"} {
		assert.True(t, bytes.Equal(long, []byte(r.get(path))), path)
	}
}

// Errors, compressed bodies and what is no JSON are the engine's own.
func TestNotRewritten(t *testing.T) {
	list := fixture(t, "20.10", "list.json")
	tests := map[string]func(http.ResponseWriter){
		"error":      func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) },
		"created":    func(w http.ResponseWriter) { w.WriteHeader(http.StatusCreated) },
		"compressed": func(w http.ResponseWriter) { w.Header().Set("Content-Encoding", "br") },
		"text":       func(w http.ResponseWriter) { w.Header().Set("Content-Type", "text/plain") },
	}
	for name, before := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				before(w)
				_, _ = io.WriteString(w, list)
			})
			r.daemon.endpoints = fixtureEndpoints(t, "20.10")
			_, body := r.do(http.MethodGet, "/containers/json", "")
			assert.Equal(t, list, body)
		})
	}
}
