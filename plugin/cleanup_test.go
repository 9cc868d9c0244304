package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/internal/store"
)

func TestCleanupByTheDaemon(t *testing.T) {
	t.Run("is refused while containers are there", func(t *testing.T) {
		d := newFakeDaemon(t, testEndpoints()...)
		fakeEngine(t)
		stdout, stderr, status := portolan(t, "cleanup")
		assert.Equal(t, 1, status)
		assert.Empty(t, stdout)
		assert.Equal(t, "portolan cleanup: containers are on Portolan's networks, by the endpoints 4f1c2a90b7de (web), 4f9ee013c2aa (dns); stop them, or cut them off with --force\n", stderr)
		assert.Zero(t, d.cleans)
	})
	t.Run("is done by force", func(t *testing.T) {
		d := newFakeDaemon(t, testEndpoints()...)
		noEngine(t)
		stdout, stderr, status := portolan(t, "cleanup", "--force")
		require.Equal(t, 0, status, stderr)
		assert.Equal(t, "The daemon has removed all rules and put back all settings. It goes on at "+d.socket+".\n", stdout)
		assert.Equal(t, 1, d.cleans)
	})
	t.Run("an endpoint that never joined is no container", func(t *testing.T) {
		eps := testEndpoints()[:1]
		eps[0].Sandbox = ""
		newFakeDaemon(t, eps...)
		noEngine(t)
		_, stderr, status := portolan(t, "cleanup")
		require.Equal(t, 0, status, stderr)
	})
}

// leftovers are what a daemon that was killed leaves: an endpoint, a state that
// says that forwarding was off, and a socket file.
func leftovers(t *testing.T) (socket, stateDir string) {
	t.Helper()
	dir := shortDir(t)
	socket, stateDir = filepath.Join(dir, "portolan.sock"), filepath.Join(dir, "state")
	ln, err := listenSocket(socket, ownerOnly)
	require.NoError(t, err)
	ln.SetUnlinkOnClose(false)
	require.NoError(t, ln.Close())

	st, err := store.Open(stateDir, nil)
	require.NoError(t, err)
	require.NoError(t, st.PutSysctl(store.Sysctl{Path: "ipv4/ip_forward", Old: "0", New: "1"}))
	require.NoError(t, st.Close())
	require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))

	la := netlink.NewLinkAttrs()
	la.Name = "plcleantest"
	require.NoError(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la}))
	link, err := netlink.LinkByName(la.Name)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetAlias(link, "portolan endpoint "+webEndpoint))
	return socket, stateDir
}

func TestCleanupWithoutADaemon(t *testing.T) {
	noEngine(t)
	socket, stateDir := leftovers(t)
	args := []string{"cleanup", "--socket", socket, "--state-dir", stateDir}

	_, stderr, status := portolan(t, args...)
	assert.Equal(t, 1, status)
	assert.Equal(t, "portolan cleanup: containers are on Portolan's networks, by the endpoints 4f1c2a90b7de; stop them, or cut them off with --force\n", stderr)
	assert.FileExists(t, socket)

	stdout, stderr, status := portolan(t, append(args, "--force")...)
	require.Equal(t, 0, status, stderr)
	for _, line := range []string{
		"remove interface plcleantest\n", "put back sysctl net.ipv4.ip_forward 0\n", "remove state " + stateDir + "\n", "remove socket " + socket + "\n",
	} {
		assert.Contains(t, stdout, line)
	}
	forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	require.NoError(t, err)
	assert.Equal(t, "0\n", string(forward))
	ours, err := driver.Interfaces()
	require.NoError(t, err)
	assert.Empty(t, ours)
	assert.NoFileExists(t, socket)
	assert.NoDirExists(t, stateDir)

	stdout, _, status = portolan(t, args...)
	require.Equal(t, 0, status)
	assert.Equal(t, "there is nothing of Portolan's to remove\n", stdout)
}

func TestCleanupBesideADaemonThatItDoesNotFind(t *testing.T) {
	d := startDaemon(t)
	defer d.stop(t)
	_, stderr, status := portolan(t, "cleanup", "--socket", d.socket+".old", "--state-dir", d.stateDir)
	assert.Equal(t, 1, status)
	assert.Contains(t, stderr, "no portolan daemon answers; tried "+d.socket+".old")
	assert.Contains(t, stderr, "but another portolan daemon serves this network namespace: pid ")
	assert.DirExists(t, d.stateDir)
}

func TestOnlyAStateOfOursIsOne(t *testing.T) {
	dir := shortDir(t)
	st, err := store.Open(dir, nil)
	require.NoError(t, err)
	require.NoError(t, st.PutSysctl(store.Sysctl{Path: "ipv4/ip_forward", Old: "0", New: "1"}))
	require.NoError(t, st.Close())
	assert.True(t, isState(filepath.Join(dir, "state.json")))

	other := filepath.Join(dir, "other.json")
	require.NoError(t, os.WriteFile(other, []byte(`{"format":"another plugin's, and long enough"}`), 0o600))
	assert.False(t, isState(other))
	assert.False(t, isState(filepath.Join(dir, "none.json")))
}

// These tests have a network namespace of their own: what the plugins of the
// machine's own engine left is not theirs to clean up.
func TestStatesOfTheMachinesPluginsAreItsOwn(t *testing.T) {
	assert.False(t, isHostNamespace())
}
