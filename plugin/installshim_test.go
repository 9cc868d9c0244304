package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testInstaller is an installer of a host on which systemctl and docker write
// down what they are called with.
func testInstaller(t *testing.T) (i *installer, out *bytes.Buffer, calls func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	for name, script := range map[string]string{
		"systemctl": "echo systemctl $* >> " + log,
		"docker":    "echo docker $* >> " + log + "; test $2 != inspect || test -e " + dir + "/context",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	out = &bytes.Buffer{}
	i = &installer{shimConfig: shimConfig{listen: defaultShim, engine: defaultEngine}, program: "/usr/local/bin/portolan", booted: dir, units: dir, out: out}
	calls = func() string {
		text, err := os.ReadFile(log)
		require.NoError(t, err)
		require.NoError(t, os.Remove(log))
		return string(text)
	}
	return i, out, calls
}

func TestInstallShim(t *testing.T) {
	i, out, calls := testInstaller(t)
	require.NoError(t, i.install(t.Context()))
	assert.Equal(t, `systemctl daemon-reload
systemctl stop portolan-shim.service portolan-shim.socket
systemctl enable --now portolan-shim.socket portolan-shim.service
docker context inspect portolan
docker context create portolan --docker host=unix:///run/portolan/docker.sock
`, calls())
	assert.Contains(t, out.String(), "docker --context portolan ps")
	service, err := os.ReadFile(filepath.Join(i.units, shimService))
	require.NoError(t, err)
	assert.Contains(t, string(service), "\nExecStart=/usr/local/bin/portolan shim\n")

	// Again, with a context that is there by now. The socket is the same, and
	// stays.
	require.NoError(t, os.WriteFile(filepath.Join(i.units, "context"), nil, 0o600))
	require.NoError(t, i.install(t.Context()))
	again := calls()
	assert.Contains(t, again, "docker context update portolan --docker host=unix:///run/portolan/docker.sock\n")
	assert.Contains(t, again, "systemctl stop portolan-shim.service\n")

	require.NoError(t, i.remove(t.Context()))
	assert.Equal(t, `systemctl disable --now portolan-shim.service
systemctl disable --now portolan-shim.socket
systemctl daemon-reload
docker context inspect portolan
docker context rm -f portolan
`, calls())
	assert.NoFileExists(t, filepath.Join(i.units, shimService))
	assert.NoFileExists(t, filepath.Join(i.units, shimSocket))

	require.NoError(t, os.Remove(filepath.Join(i.units, "context")))
	out.Reset()
	require.NoError(t, i.remove(t.Context()))
	assert.Equal(t, "the shim is not installed\n", out.String())
}

func TestInstallShimElsewhere(t *testing.T) {
	i, _, calls := testInstaller(t)
	path := filepath.Join(i.units, "docker.sock")
	i.listen, i.engine, i.takeOver = path, "/run/engine.sock", true
	require.NoError(t, i.install(t.Context()))
	assert.Contains(t, calls(), "host=unix://"+path+"\n")
	service, err := os.ReadFile(filepath.Join(i.units, shimService))
	require.NoError(t, err)
	assert.Contains(t, string(service), " shim --engine /run/engine.sock --take-over\n")
	socket, err := os.ReadFile(filepath.Join(i.units, shimSocket))
	require.NoError(t, err)
	assert.Contains(t, string(socket), "\nListenStream="+path+"\n")
	assert.NotContains(t, i.socket(false), "SocketGroup")
	assert.Contains(t, i.socket(true), "SocketGroup=docker\n")
}

func TestInstallShimRefuses(t *testing.T) {
	i, _, _ := testInstaller(t)
	for listen, want := range map[string]string{
		"/run/my socket":      "without spaces",
		"docker.sock":         "an absolute path",
		defaultEngine:         "are the same socket",
		"/run/%n/docker.sock": "without spaces and quotes",
	} {
		i.listen = listen
		require.ErrorContains(t, i.install(t.Context()), want)
	}
	i.listen = defaultShim
	i.program = "/root/portolan/bin/portolan"
	require.ErrorContains(t, i.install(t.Context()), "install it as /usr/local/bin/portolan")
	i.program = "/usr/local/bin/portolan"
	require.NoError(t, os.WriteFile(filepath.Join(i.units, "systemctl"), []byte("#!/bin/sh\necho no bus >&2; exit 1\n"), 0o755))
	err := i.install(t.Context())
	require.ErrorContains(t, err, "systemctl daemon-reload: exit status 1: no bus")
	assert.Equal(t, 1, strings.Count(err.Error(), "\n")+1)
}

func TestInstallShimNeedsSystemd(t *testing.T) {
	i, _, _ := testInstaller(t)
	i.booted = filepath.Join(i.units, "none")
	err := i.install(t.Context())
	require.ErrorContains(t, err, "systemd does not run here")
	require.ErrorContains(t, err, "docker context create portolan --docker host=unix:///run/portolan/docker.sock")
	assert.NoFileExists(t, filepath.Join(i.units, shimService))
}

// TestInstallShimTakesNoSocket: systemd would unlink the socket of a running
// engine and put its own there.
func TestInstallShimTakesNoSocket(t *testing.T) {
	i, _, _ := testInstaller(t)
	i.listen = filepath.Join(i.units, "docker.sock")
	ln, err := net.Listen("unix", i.listen)
	require.NoError(t, err)
	require.ErrorContains(t, i.install(t.Context()), "something else listens on "+i.listen)
	assert.NoFileExists(t, filepath.Join(i.units, shimSocket))

	// What is left of one is in nobody's way, and goes with the shim.
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, ln.Close())
	require.NoError(t, i.install(t.Context()))
	require.FileExists(t, i.listen)
	require.NoError(t, i.remove(t.Context()))
	assert.NoFileExists(t, i.listen)
}
