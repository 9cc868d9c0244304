package portmap

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// OpenSockets counts the sockets of this process.
func OpenSockets(t testing.TB) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(link, "socket:") {
			n++
		}
	}
	return n
}

// RequireSockets wants as many sockets as there were.
func RequireSockets(t testing.TB, want int, msg ...any) {
	t.Helper()
	require.Equal(t, want, OpenSockets(t), msg...)
}

// HoldPort has this process hold a port, as "udp4", until the test ends or the
// socket is closed.
func HoldPort(t testing.TB, network string, at string) interface{ Close() error } {
	t.Helper()
	if strings.HasPrefix(network, "udp") {
		c, err := net.ListenPacket(network, at)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	c, err := net.Listen(network, at)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// HoldPortElsewhere has another process, whose name is sleep, hold a port, and
// returns its process ID.
func HoldPortElsewhere(t testing.TB, network, at string) int {
	t.Helper()
	c := HoldPort(t, network, at)
	f, err := c.(interface{ File() (*os.File, error) }).File()
	require.NoError(t, err)
	require.NoError(t, c.Close())
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = []*os.File{f}
	require.NoError(t, cmd.Start())
	require.NoError(t, f.Close())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

var addr = netip.MustParseAddr

// one is a mapping of one port.
func one(p Proto, host string, hostPort, port uint16) Mapping {
	return ports(p, host, hostPort, hostPort, port)
}

// ports is a mapping; host may be "".
func ports(p Proto, host string, first, last, port uint16) Mapping {
	m := Mapping{Proto: p, HostPort: first, HostPortEnd: last, Port: port}
	if host != "" {
		m.HostIP = addr(host)
	}
	return m
}
