package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// dialSocket is a connection that ends with the test.
func dialSocket(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	return conn.(*net.UnixConn)
}

// post is a request of an engine, as it stands on the wire.
func post(path, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: plugin\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

// answerOf sends text and reads the answer.
func answerOf(t *testing.T, socket, text string) (status int, body string) {
	t.Helper()
	conn := dialSocket(t, socket)
	defer conn.Close()
	go func() { _, _ = io.Copy(conn, strings.NewReader(text)) }() // who does not read on has answered
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(all)
}

func TestBadRequestsAtALiveSocket(t *testing.T) {
	d := startDaemonProcess(t)
	unknown := strings.Repeat("f", 64)
	endpoint := fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%[1]q`, unknown)
	const portmap = "com.docker.network.portmap"
	tests := []struct {
		name   string
		send   string
		status int
		want   string // in the body
	}{
		{"JSON that is cut short", post("/NetworkDriver.Join", `{"NetworkID":"n","Endp`), 400, `{"Err":"decode the request: jsontext: unexpected EOF`},
		{"no body", post("/NetworkDriver.CreateNetwork", ""), 400, `{"Err":"empty request: the Portolan daemon was perhaps restarted`},
		{"no JSON", post("/NetworkDriver.CreateNetwork", "\x00\xff"), 400, `{"Err":"decode the request: invalid character`},
		{"JSON and more", post("/NetworkDriver.DeleteNetwork", `{"NetworkID":"n"}{"NetworkID":"m"}`), 400, "there is more after its end"},
		{"a number for an ID", post("/NetworkDriver.DeleteNetwork", `{"NetworkID":1}`), 400, "cannot unmarshal number"},
		{"a list for an object", post("/NetworkDriver.Join", `[]`), 400, "want an object"},
		{"text for a port", post("/NetworkDriver.ProgramExternalConnectivity", endpoint+`,"Options":{"`+portmap+`":[{"Port":"80"}]}}`), 200, "decode port bindings: "},
		{"a port of 17 bits", post("/NetworkDriver.ProgramExternalConnectivity", endpoint+`,"Options":{"`+portmap+`":[{"Proto":6,"Port":65536}]}}`), 200, "decode port bindings: "},
		{"arrays in arrays", post("/NetworkDriver.CreateEndpoint", endpoint+`,"Options":{"x":`+strings.Repeat("[", 1<<20)), 400, "exceeded max"},
		{"a body that says it is too long", post("/NetworkDriver.CreateNetwork", `{"NetworkID":"`+strings.Repeat("n", 65<<20)+`"}`), 400, "request body too large"},
		{"no ID", post("/NetworkDriver.Leave", `{}`), 400, `{"Err":"no NetworkID"}`},
		{"a network that nobody knows", post("/NetworkDriver.CreateEndpoint", endpoint+`,"Interface":{"Address":"10.0.0.2/24"}}`), 200, "network ffffffffffff is not known to Portolan"},
		{"an endpoint that nobody knows", post("/NetworkDriver.ProgramExternalConnectivity", endpoint+"}"), 200, "is not known to Portolan"},
		{"an owner of nothing", post("/Portolan.SetOwner", `{"EndpointID":"e"}`), 200, "is not known to Portolan"},
		{"an ID with a path in it", post("/NetworkDriver.CreateEndpoint", `{"NetworkID":"../../etc","EndpointID":"../x","Interface":{}}`), 200, `is not an endpoint ID`},
		{"a path of nobody's", post("/NetworkDriver.NoSuchMethod", "{}"), 404, `{"Err":"/NetworkDriver.NoSuchMethod is not a method of this plugin"}`},
		{"a path out of the tree", post("/../../etc/passwd", "{}"), 307, ""}, // to /etc/passwd, which is no method either
		{"GET of a method", "GET /NetworkDriver.Join HTTP/1.1\r\nHost: plugin\r\n\r\n", 400, "empty request"},
		{"GET of what only POST does", "GET /Portolan.Cleanup HTTP/1.1\r\nHost: plugin\r\n\r\n", 404, "not a method"},
		{"no HTTP", "hello?\r\n\r\n", 400, "400 Bad Request"},
		{"TLS", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", 400, "400 Bad Request"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""},
		{"headers without end", "GET / HTTP/1.1\r\nHost: plugin\r\nX: " + strings.Repeat("x", 2<<20), 431, ""},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400, "missing required Host header"},
		{"two lengths", "POST /NetworkDriver.Leave HTTP/1.1\r\nHost: plugin\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, ""},
		{"a chunk that is none", "POST /NetworkDriver.Leave HTTP/1.1\r\nHost: plugin\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}", 400, "invalid byte in chunk length"},
		{"an expectation", strings.Replace(post("/NetworkDriver.Leave", "{}"), "\r\n\r\n", "\r\nExpect: everything\r\n\r\n", 1), 417, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, body := answerOf(t, d.socket, tt.send)
			assert.Equal(t, tt.status, status, body)
			assert.Contains(t, body, tt.want)
			d.goesOn(t)
		})
	}
	assert.NotContains(t, d.log.String(), "panic")
	endpoints, err := (&client{socket: d.socket, http: socketClient(d.socket)}).list(t.Context())
	require.NoError(t, err)
	assert.Empty(t, endpoints)
}

// A client that closes its half has gone, as far as HTTP servers know: its call is
// broken off where it waits. It gets an answer, if it can be given one.
func TestHalfClosedClients(t *testing.T) {
	d := startDaemonProcess(t)
	whole := post("/NetworkDriver.DeleteNetwork", `{"NetworkID":"n"}`)
	for _, n := range []int{0, 1, 30, len(whole) - 5, len(whole)} {
		conn := dialSocket(t, d.socket)
		_, err := conn.Write([]byte(whole[:n]))
		require.NoError(t, err)
		require.NoError(t, conn.CloseWrite())
		answer, err := io.ReadAll(conn)
		require.NoError(t, err, "the connection ends")
		if n == len(whole) {
			assert.Regexp(t, "^HTTP/1.1 (200|503) ", string(answer))
		}
		require.NoError(t, conn.Close())
		d.goesOn(t)
	}
}

// goesOn fails unless the daemon does what an engine asks.
func (d *daemonProcess) goesOn(t *testing.T) {
	t.Helper()
	status, body := answerOf(t, d.socket, post("/NetworkDriver.DeleteNetwork", `{"NetworkID":"n"}`))
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, "{}\n", body)
}

// Every connection waits for something: the daemon for none of them.
func TestClientsThatKeepTheirConnections(t *testing.T) {
	d := startDaemonProcess(t)
	whole := post("/NetworkDriver.DeleteNetwork", `{"NetworkID":"n"}`)
	for name, text := range map[string]string{
		"that say nothing":           "",
		"in the midst of a header":   whole[:30],
		"in the midst of a body":     whole[:len(whole)-5],
		"with an answer, and silent": whole,
	} {
		t.Run(name, func(t *testing.T) {
			for range 500 {
				_, err := dialSocket(t, d.socket).Write([]byte(text))
				require.NoError(t, err)
			}
			d.goesOn(t)
		})
	}
}

// Out of files, the daemon waits until there are some again.
func TestMoreConnectionsThanFiles(t *testing.T) {
	d := startDaemonProcess(t)
	limit := unix.Rlimit{Cur: 128, Max: 128}
	require.NoError(t, unix.Prlimit(d.cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil))
	var conns []*net.UnixConn
	for range 300 {
		conns = append(conns, dialSocket(t, d.socket))
	}
	require.Eventually(t, func() bool { return strings.Contains(d.log.String(), "too many open files") }, 20*time.Second, time.Millisecond)
	for _, c := range conns {
		require.NoError(t, c.Close())
	}
	d.goesOn(t)
}

// A client that announces a body and does not send it gets an answer, and the
// connection ends; one in time has no limit for the next request.
func TestSlowBodies(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	ln, err := listenSocket(path, ownerOnly)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if r.Context().Err() != nil {
			http.Error(w, "broken off", http.StatusInternalServerError)
		}
	})
	const within = 200 * time.Millisecond
	done := make(chan error, 1)
	go func() {
		done <- server{ln, timely(handler, within), time.Second, slog.New(slog.DiscardHandler)}.run(ctx)
	}()

	slow := dialSocket(t, path)
	_, err = slow.Write([]byte("POST / HTTP/1.1\r\nHost: plugin\r\nContent-Length: 100\r\n\r\n{"))
	require.NoError(t, err)
	all, err := io.ReadAll(slow)
	require.NoError(t, err, "the connection ends")
	assert.True(t, bytes.HasPrefix(all, []byte("HTTP/1.1 400 ")), "%s", all)
	assert.Contains(t, string(all), "i/o timeout")

	quick := dialSocket(t, path)
	answers := bufio.NewReader(quick)
	for _, pause := range []bool{false, true, false} {
		if pause { // the limit of the first request is over
			require.NoError(t, quick.SetReadDeadline(time.Now().Add(2*within)))
			_, err := answers.ReadByte()
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.NoError(t, quick.SetReadDeadline(time.Now().Add(20*time.Second)))
		}
		_, err = quick.Write([]byte(post("/", "{}")))
		require.NoError(t, err)
		resp, err := http.ReadResponse(answers, nil)
		require.NoError(t, err)
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		require.NoError(t, resp.Body.Close())
	}
	cancel()
	require.NoError(t, <-done)
}

// Other users do not reach the sockets, whatever they send.
func TestSocketsAreClosedToOtherUsers(t *testing.T) {
	d := startDaemonProcess(t)
	require.NoError(t, os.Chmod(filepath.Dir(d.socket), 0o755), "the folder is not what keeps them out")
	shim := filepath.Join(filepath.Dir(d.socket), "docker.sock")
	ln, err := listenSocket(shim, access{group: 12345, mode: 0o660, folder: 0o755})
	require.NoError(t, err)
	defer ln.Close()
	for _, socket := range []string{d.socket, shim} {
		asNobody(t, func() error {
			_, err := net.Dial("unix", socket)
			assert.ErrorIs(t, err, unix.EACCES, socket)
			return nil
		})
	}
	info, err := os.Stat(d.socket)
	require.NoError(t, err)
	assert.Equal(t, os.ModeSocket|0o600, info.Mode())
	d.goesOn(t)
}
