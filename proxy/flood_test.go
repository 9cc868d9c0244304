package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// lorisEnv has this program be many clients that say half of something, "ADDRESS
// COUNT", with open files of its own.
const lorisEnv = "PROXY_LORIS"

// loris connects, says when it has, and holds what is not reset until its input
// ends, by reset.
func loris(what string) {
	f := strings.Fields(what)
	count, _ := strconv.Atoi(f[1])
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 20_000, Max: 20_000})
	var held []net.Conn
	for range count {
		c, err := net.Dial("tcp", f[0])
		if err != nil {
			continue // reset before it was known to be connected
		}
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nX-")
		held = append(held, c)
	}
	fmt.Println("connected")
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, c := range held { // the backend would go on after an orderly end
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}

// startLoris returns when all have connected or were reset, and what ends it.
func startLoris(t *testing.T, to netip.AddrPort, count int) (stop func()) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", lorisEnv, to, count))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "connected\n", line)
	stop = func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// queue is a backend that takes connections and never reads them: they take no
// file of this process.
func queue(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, unix.Close(fd)) })
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, unix.Listen(fd, 4096))
	sa, err := unix.Getsockname(fd)
	require.NoError(t, err)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
}

// asked has a client of a port be answered.
func asked(t *testing.T, front netip.AddrPort, backend *net.TCPListener) {
	t.Helper()
	c := dialTCP(t, front)
	b := acceptTCP(t, backend)
	write(t, c, "question")
	requireRead(t, b, "question")
	write(t, b, "answer")
	requireRead(t, c, "answer")
	abortTCP(c)
	requireReset(t, b)
	require.NoError(t, b.Close())
}

// TestTCPOutlivesASlowLoris has 2,000 clients send half of a request and nothing
// more, where the process may have 600 files: the port has its share of
// connections, the rest is reset and counted, and another port is served, also
// when others are attacked likewise.
func TestTCPOutlivesASlowLoris(t *testing.T) {
	noLeaks(t)
	limitFiles(t, 600)
	const clients = 2000
	share := MostConns() / 4
	var files Files
	backend := listenTCP(t, "tcp", "127.0.0.1")
	attacked := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), to(queue(t)), TCPConfig{MaxConns: share, Files: &files})
	t.Cleanup(func() { assert.NoError(t, attacked.Close()) })
	other := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), to(addrPort(backend.Addr())), TCPConfig{MaxConns: share, Files: &files})
	t.Cleanup(func() { assert.NoError(t, other.Close()) })

	stop := startLoris(t, addrPort(attacked.Addr()), clients)
	requireValues(t, attacked, map[string]int{"connections": share, "connections_refused_total limit": clients - share})
	asked(t, addrPort(other.Addr()), backend)
	requireValues(t, other, map[string]int{"connections_total": 1, "connections_refused_total limit": 0, "connections_refused_total files": 0})
	var more []func()
	for range 7 {
		p := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), to(queue(t)), TCPConfig{MaxConns: share, Files: &files})
		t.Cleanup(func() { assert.NoError(t, p.Close()) })
		more = append(more, startLoris(t, addrPort(p.Addr()), clients/10))
	}
	asked(t, addrPort(other.Addr()), backend)
	for _, stop := range append(more, stop) {
		stop()
	}
	requireValues(t, attacked, map[string]int{"connections": 0, "connections_total": share})
}

// TestTCPOutlivesABurstBeyondTheFiles has one port, without a share, use up all
// files that connections may have: the process keeps what it needs, the rest is
// counted, and the port is served again afterwards.
func TestTCPOutlivesABurstBeyondTheFiles(t *testing.T) {
	noLeaks(t)
	limitFiles(t, 400)
	const clients = 1000
	var files Files
	most := MostConns()/3 + 1 // half of what it leaves
	backend, to := listenTCP(t, "tcp", "127.0.0.1"), to(queue(t))
	var moved bool
	p := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), func(local netip.AddrPort) (netip.AddrPort, bool) {
		if moved {
			return addrPort(backend.Addr()), true
		}
		return to(local)
	}, TCPConfig{Files: &files})
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	stop := startLoris(t, addrPort(p.Addr()), clients)
	requireValues(t, p, map[string]int{"connections": most, "connections_refused_total files": clients - most})
	require.Equal(t, 2*most, files.Taken())
	f, err := os.Open(os.DevNull)
	require.NoError(t, err, "the process has files for itself")
	require.NoError(t, f.Close())
	stop()
	requireValues(t, p, map[string]int{"connections": 0})
	p.mu.Lock()
	moved = true
	p.mu.Unlock()
	asked(t, addrPort(p.Addr()), backend)
	require.Eventually(t, func() bool { return files.Taken() == 0 }, patience, time.Millisecond)
}
