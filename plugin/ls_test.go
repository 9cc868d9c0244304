package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestList(t *testing.T) {
	newFakeDaemon(t, testEndpoints()...)
	t.Run("a line a range, by protocol, port and address", func(t *testing.T) {
		noEngine(t)
		stdout, stderr, status := portolan(t, "ls")
		require.Equal(t, 0, status, stderr)
		assert.Empty(t, stderr)
		assert.Equal(t, `PORTS                                        ENDPOINT       NETWORK        CONTAINER
8080->80                                     4f1c2a90b7de   c0ffee11d00d   -
127.0.0.1:8080->80                           4f1c2a90b7de   c0ffee11d00d   -
8443->443                                    4f1c2a90b7de   c0ffee11d00d   -
53530->53                                    4f9ee013c2aa   c0ffee11d00d   dns
[2001:db8::1]:10000-10999->20000-20999/udp   4f9ee013c2aa   c0ffee11d00d   dns
53530->53/udp                                4f9ee013c2aa   c0ffee11d00d   dns
5000->5000/sctp                              4f9ee013c2aa   c0ffee11d00d   dns
`, stdout)
	})
	t.Run("the engine names the containers that the daemon does not know", func(t *testing.T) {
		fakeEngine(t)
		stdout, _, status := portolan(t, "ls")
		require.Equal(t, 0, status)
		assert.Regexp(t, `8443->443 +4f1c2a90b7de +c0ffee11d00d +web\n`, stdout)
		assert.Regexp(t, `53530->53 +4f9ee013c2aa +c0ffee11d00d +dns\n`, stdout)
	})
	t.Run("as JSON", func(t *testing.T) {
		noEngine(t)
		stdout, _, status := portolan(t, "ls", "--json")
		require.Equal(t, 0, status)
		assert.Contains(t, stdout, `"53530->53/udp"`, "arrows stay arrows")
		var rows []map[string]any
		require.NoError(t, json.Unmarshal([]byte(stdout), &rows))
		require.Len(t, rows, 7)
		assert.Equal(t, map[string]any{
			"Ports": "[2001:db8::1]:10000-10999->20000-20999/udp", "Proto": "udp", "HostIP": "2001:db8::1",
			"HostPort": 10000., "HostPortEnd": 10999., "ContainerPort": 20000., "ContainerPortEnd": 20999.,
			"EndpointID": dnsEndpoint, "NetworkID": testNetwork, "ContainerID": "d0d0caca00000000", "ContainerName": "dns",
			"Origin": "engine",
		}, rows[4])
		assert.NotContains(t, rows[0], "HostIP")
	})
}

func TestListOfNothing(t *testing.T) {
	newFakeDaemon(t)
	noEngine(t)
	stdout, _, status := portolan(t, "ls")
	require.Equal(t, 0, status)
	assert.Equal(t, "PORTS   ENDPOINT   NETWORK   CONTAINER\n", stdout)
	stdout, _, status = portolan(t, "ls", "--json")
	require.Equal(t, 0, status)
	assert.Equal(t, "[]\n", stdout)
}

// A routed network has no host ports: the container's own are open.
func TestListOfARoutedNetwork(t *testing.T) {
	eps := testEndpoints()
	for i := range eps {
		eps[i].Target.Routed4, eps[i].Target.Routed6 = true, true
	}
	newFakeDaemon(t, eps...)
	noEngine(t)
	stdout, _, status := portolan(t, "ls")
	require.Equal(t, 0, status)
	assert.Contains(t, stdout, "\n53/udp ")
	assert.Contains(t, stdout, "\n20000-20999/udp ")
	assert.NotContains(t, stdout, "->")
}
