package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
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
	ln, err := listenSocket(path, ownerOnly)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.ModeSocket|0o600, info.Mode())

	require.NoError(t, ln.Close())
	assert.NoFileExists(t, path)
}

func TestListenSocketForAGroup(t *testing.T) {
	path := filepath.Join(shortDir(t), "shim", "docker.sock")
	ln, err := listenSocket(path, access{group: 12345, mode: 0o660, folder: 0o755})
	require.NoError(t, err)
	defer ln.Close()
	var socket, folder unix.Stat_t
	require.NoError(t, unix.Stat(path, &socket))
	require.NoError(t, unix.Stat(filepath.Dir(path), &folder))
	assert.Equal(t, uint32(0o660), socket.Mode&0o777)
	assert.Equal(t, uint32(12345), socket.Gid)
	assert.Equal(t, uint32(0o755), folder.Mode&0o777)
}

func TestListenSocketReplacesWhatACrashLeft(t *testing.T) {
	path := filepath.Join(shortDir(t), "portolan.sock")
	crashed, err := listenSocket(path, ownerOnly)
	require.NoError(t, err)
	crashed.SetUnlinkOnClose(false)
	require.NoError(t, crashed.Close())
	require.FileExists(t, path)

	ln, err := listenSocket(path, ownerOnly)
	require.NoError(t, err)
	defer ln.Close()
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	conn.Close()
}

func TestListenSocketLeavesOthersAlone(t *testing.T) {
	path := filepath.Join(shortDir(t), "portolan.sock")
	first, err := listenSocket(path, ownerOnly)
	require.NoError(t, err)
	defer first.Close()
	_, err = listenSocket(path, ownerOnly)
	require.ErrorContains(t, err, "another process answers there (pid ")
	require.FileExists(t, path)

	file := filepath.Join(filepath.Dir(path), "notes")
	require.NoError(t, os.WriteFile(file, []byte("mine"), 0o600))
	_, err = listenSocket(file, ownerOnly)
	require.ErrorContains(t, err, "no socket")
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "mine", string(text))
}

func TestListenSocketNamesAPathThatIsTooLong(t *testing.T) {
	_, err := listenSocket("/run/"+strings.Repeat("x", 103), ownerOnly)
	require.ErrorContains(t, err, "at most 107 bytes")
}

// Whoever can put another socket there would be the engine's driver.
func TestListenSocketRefusesAFolderForEverybody(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "portolan.sock")
	for _, mode := range []os.FileMode{0o777, 0o777 | os.ModeSticky} {
		require.NoError(t, os.Chmod(dir, mode))
		_, err := listenSocket(path, ownerOnly)
		require.ErrorContains(t, err, "every user may write to "+dir)
		require.NoFileExists(t, path)
	}
	require.NoError(t, os.Chmod(dir, 0o775))
	ln, err := listenSocket(path, ownerOnly)
	require.NoError(t, err)
	require.NoError(t, ln.Close())
}

func TestListenSocketLeavesLinksAlone(t *testing.T) {
	dir := shortDir(t)
	target := filepath.Join(dir, "target")
	require.NoError(t, os.WriteFile(target, nil, 0o600))
	link := filepath.Join(dir, "docker.sock")
	require.NoError(t, os.Symlink(target, link))
	_, err := listenSocket(link, access{group: 12345, mode: 0o660, folder: 0o755})
	require.ErrorContains(t, err, "no socket")
	var stat unix.Stat_t
	require.NoError(t, unix.Stat(target, &stat))
	assert.NotEqual(t, uint32(12345), stat.Gid)
}
