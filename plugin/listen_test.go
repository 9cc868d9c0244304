package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shortDir is a folder for sockets: t.TempDir's names are longer than the 107
// bytes that a socket's path may have.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "portolan")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestListenSocketIsForItsOwnerAlone(t *testing.T) {
	path := filepath.Join(shortDir(t), "plugins", "portolan.sock")
	ln, err := listenSocket(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.ModeSocket|0o600, info.Mode())

	require.NoError(t, ln.Close())
	assert.NoFileExists(t, path)
}

func TestListenSocketReplacesWhatACrashLeft(t *testing.T) {
	path := filepath.Join(shortDir(t), "portolan.sock")
	crashed, err := listenSocket(path)
	require.NoError(t, err)
	crashed.SetUnlinkOnClose(false)
	require.NoError(t, crashed.Close())
	require.FileExists(t, path)

	ln, err := listenSocket(path)
	require.NoError(t, err)
	defer ln.Close()
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	conn.Close()
}

func TestListenSocketLeavesOthersAlone(t *testing.T) {
	path := filepath.Join(shortDir(t), "portolan.sock")
	first, err := listenSocket(path)
	require.NoError(t, err)
	defer first.Close()
	_, err = listenSocket(path)
	require.ErrorContains(t, err, "another process answers there (pid ")
	require.FileExists(t, path)

	file := filepath.Join(filepath.Dir(path), "notes")
	require.NoError(t, os.WriteFile(file, []byte("mine"), 0o600))
	_, err = listenSocket(file)
	require.ErrorContains(t, err, "no socket")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "mine", string(text))
}

func TestListenSocketNamesAPathThatIsTooLong(t *testing.T) {
	_, err := listenSocket("/run/" + strings.Repeat("x", 103))
	require.ErrorContains(t, err, "at most 107 bytes")
}
