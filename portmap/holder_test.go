package portmap

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A process that waits on a port for somebody to read its name.
func TestTheNameOfAHolderIsForReadingOnly(t *testing.T) {
	const comm = "/proc/self/comm"
	own, err := os.ReadFile(comm)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(comm, []byte("a\x1b[2Jb\nc\u202ed"), 0o600))
	t.Cleanup(func() { assert.NoError(t, os.WriteFile(comm, own, 0o600)) })
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()

	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	m := Mapping{Proto: TCP, HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: port, HostPortEnd: port, Port: 80}
	text := (&conflictError{mapping: m, port: port, process: true}).Error()
	assert.Contains(t, text, fmt.Sprintf("is in use by a?[2Jb?c?d (pid %d) on 127.0.0.1;", os.Getpid()))
}
