package shim

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hijacking is an engine that makes a raw connection of each request, as for
// attach and exec, and gives it to talk after the head of the answer.
func hijacking(t *testing.T, talk func(in io.Reader, c *net.UnixConn)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		conn, buf, err := http.NewResponseController(w).Hijack()
		if !assert.NoError(t, err) {
			return
		}
		defer conn.Close()
		if up := r.Header.Get("Upgrade"); up != "" {
			fmt.Fprintf(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", up)
		} else {
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n")
		}
		fmt.Fprintf(conn, "%s %s %q\n", r.Method, r.RequestURI, body)
		talk(buf, conn.(*net.UnixConn))
	}
}

// readHead reads the head of a raw answer and returns its status.
func readHead(t *testing.T, in *bufio.Reader) string {
	line, err := in.ReadString('\n')
	require.NoError(t, err)
	status := strings.TrimSpace(line)
	for line != "\r\n" {
		line, err = in.ReadString('\n')
		require.NoError(t, err)
	}
	return status
}

// The ways to ask for a raw connection, each with what the engine answers and
// sees.
var rawRequests = []struct{ name, request, status, seen string }{
	{"attach", "POST /v1.41/containers/a/attach?stdin=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 101 UPGRADED", `POST /v1.41/containers/a/attach?stdin=1 ""`},
	{"attach of an old client", "POST /containers/a/attach?stdin=1 HTTP/1.1\r\nHost: d\r\n\r\n", "HTTP/1.1 200 OK", `POST /containers/a/attach?stdin=1 ""`},
	{"exec", "POST /exec/e/start HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 101 UPGRADED", `POST /exec/e/start "{}"`},
	{"exec of an old client", "POST /exec/e/start HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 200 OK", `POST /exec/e/start "{}"`},
	{"exec in chunks", "POST /exec/e/start HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "HTTP/1.1 200 OK", `POST /exec/e/start "{}"`},
	{"session", "POST /session HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", "HTTP/1.1 101 UPGRADED", `POST /session ""`},
	{"websocket", "GET /containers/a/attach/ws HTTP/1.1\r\nHost: d\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 101 UPGRADED", `GET /containers/a/attach/ws ""`},
}

// echo x | docker run -i: the client's end of input is not the end of output.
func TestHalfClose(t *testing.T) {
	for _, tt := range rawRequests {
		for _, early := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.name, ", input with the request: ", early), func(t *testing.T) {
				r := newRig(t, hijacking(t, func(in io.Reader, c *net.UnixConn) {
					input, err := io.ReadAll(in)
					assert.NoError(t, err)
					fmt.Fprintf(c, "got %s", input)
				}))
				c := dial(t, r.api)
				in := bufio.NewReader(c)
				request, input := tt.request, "hello"
				if early {
					request, input = request+"hel", "lo"
				}
				fmt.Fprint(c, request)
				assert.Equal(t, tt.status, readHead(t, in))
				fmt.Fprint(c, input)
				require.NoError(t, c.CloseWrite())
				out, err := io.ReadAll(in)
				require.NoError(t, err)
				assert.Equal(t, tt.seen+"\ngot hello", string(out))
			})
		}
	}
}

// The end of output is not that of input.
func TestHalfCloseOfEngine(t *testing.T) {
	rest := make(chan string, 1)
	r := newRig(t, hijacking(t, func(in io.Reader, c *net.UnixConn) {
		assert.NoError(t, c.CloseWrite())
		input, err := io.ReadAll(in)
		assert.NoError(t, err)
		rest <- string(input)
	}))
	c := dial(t, r.api)
	fmt.Fprint(c, rawRequests[0].request)
	_, err := io.ReadAll(c)
	require.NoError(t, err)
	fmt.Fprint(c, "still here")
	require.NoError(t, c.CloseWrite())
	assert.Equal(t, "still here", receive(t, rest, "the input"))
}

// yes | docker run -i busybox head: input that nobody reads does not cost
// output.
func TestOutputSurvivesInput(t *testing.T) {
	output := strings.Repeat("output\n", 1<<18)
	r := newRig(t, hijacking(t, func(in io.Reader, c *net.UnixConn) {
		_, err := bufio.NewReader(in).ReadString('\n')
		assert.NoError(t, err)
		_, err = io.WriteString(c, output)
		assert.NoError(t, err)
	}))
	c := dial(t, r.api)
	in := bufio.NewReader(c)
	fmt.Fprint(c, rawRequests[2].request)
	readHead(t, in)
	refused := make(chan error, 1)
	go func() {
		for {
			if _, err := io.WriteString(c, strings.Repeat("y\n", 1000)); err != nil {
				refused <- err
				return
			}
		}
	}()
	out, err := io.ReadAll(in)
	require.NoError(t, err)
	assert.Equal(t, len(rawRequests[2].seen)+1+len(output), len(out))
	require.Error(t, receive(t, refused, "the client's input is refused, as by the engine"))
}

// A client is told that its input is wanted no more, whatever becomes of the
// output.
func TestInputRefused(t *testing.T) {
	deaf, refused := make(chan bool), make(chan bool)
	r := newRig(t, hijacking(t, func(_ io.Reader, c *net.UnixConn) {
		assert.NoError(t, c.CloseRead())
		close(deaf)
		<-refused
		fmt.Fprint(c, "output")
	}))
	c := dial(t, r.api)
	in := bufio.NewReader(c)
	fmt.Fprint(c, rawRequests[0].request)
	readHead(t, in)
	<-deaf
	eventually(t, func() bool { _, err := io.WriteString(c, "y\n"); return err != nil }, "the input is refused")
	close(refused)
	out, err := io.ReadAll(in)
	require.NoError(t, err)
	assert.Equal(t, rawRequests[0].seen+"\noutput", string(out))
}

// Nor does input that has come too late: a unix socket that is closed with
// unread data is reset, and its peer gets an error in place of the end.
func TestNoReset(t *testing.T) {
	full := make(chan bool)
	r := newRig(t, hijacking(t, func(_ io.Reader, c *net.UnixConn) {
		<-full
		fmt.Fprint(c, "all of it")
	}))
	c := dial(t, r.api)
	in := bufio.NewReader(c)
	fmt.Fprint(c, rawRequests[2].request)
	readHead(t, in)
	// Until nothing more fits in between.
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(time.Second)))
	for {
		if _, err := io.WriteString(c, strings.Repeat("y\n", 1000)); err != nil {
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			break
		}
	}
	close(full)
	r.quiet()
	out, err := io.ReadAll(in)
	require.NoError(t, err)
	assert.Equal(t, rawRequests[2].seen+"\nall of it", string(out))
}

// A client that vanishes is not one that has ended its input: the engine's
// output has nowhere to go, as if there were no shim.
func TestVanishes(t *testing.T) {
	refused := make(chan error, 1)
	r := newRig(t, hijacking(t, func(in io.Reader, c *net.UnixConn) {
		_, err := io.Copy(io.Discard, in)
		assert.NoError(t, err)
		for err == nil {
			_, err = c.Write([]byte("x"))
		}
		refused <- err
	}))
	c := dial(t, r.api)
	fmt.Fprint(c, rawRequests[0].request)
	readHead(t, bufio.NewReader(c))
	require.NoError(t, c.Close())
	require.Error(t, receive(t, refused, "the engine's output is refused"))
}

// And the reverse: an engine that dies takes the connection along.
func TestEngineVanishes(t *testing.T) {
	r := newRig(t, hijacking(t, func(io.Reader, *net.UnixConn) {}))
	c := dial(t, r.api)
	fmt.Fprint(c, rawRequests[0].request)
	_, err := io.ReadAll(c)
	require.NoError(t, err)
	eventually(t, func() bool { return gone(c) }, "the client can send no more")
}

// An ordinary answer ends the connection: what the client would send next would
// not come by the shim.
func TestOrdinaryAnswer(t *testing.T) {
	r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "/exec/e/start", r.RequestURI)
		writeJSON(w, 404, `{"message":"no such exec"}`)
	})
	const request = "POST /exec/e/start HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{}"
	c := dial(t, r.api)
	fmt.Fprint(c, request+request)
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, `{"message":"no such exec"}`, string(body))
	assert.True(t, resp.Close, "the client is told")
	more, err := io.ReadAll(in)
	require.NoError(t, err)
	assert.Empty(t, more)
}

// gRPC clients of engine 29 begin with HTTP/2.
func TestHTTP2(t *testing.T) {
	r := newRig(t, reflect)
	var only http.Protocols
	only.SetUnencryptedHTTP2(true)
	c := client(t, r.api)
	c.Transport.(*http.Transport).Protocols = &only
	resp, err := c.Post("http://docker/moby.buildkit.v1.Control/Solve", "application/grpc", strings.NewReader("body"))
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Contains(t, string(body), `POST /moby.buildkit.v1.Control/Solve HTTP/2.0 host "docker"`)
	assert.Contains(t, string(body), `"body" <nil>`)
}
