package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/internal/store"
)

func TestInspectFormat(t *testing.T) {
	newFakeDaemon(t, testEndpoints()...)
	noEngine(t)
	stdout, stderr, status := portolan(t, "inspect", webEndpoint)
	require.Equal(t, 0, status, stderr)
	assert.JSONEq(t, `[{
		"EndpointID": "`+webEndpoint+`",
		"NetworkID": "`+testNetwork+`",
		"NetworkSettings": {
			"Ports": {
				"443/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8443"}],
				"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostIp": "0.0.0.0", "HostPort": "8080"}]
			},
			"PortMapping": {"Tcp": {"443": "8443", "80": "8080"}, "Udp": {}}
		}
	}]`, stdout)
}

func TestInspectByATemplate(t *testing.T) {
	newFakeDaemon(t, testEndpoints()...)
	noEngine(t)
	stdout, stderr, status := portolan(t, "inspect", "-f", "{{.ContainerName}} {{json .NetworkSettings.PortMapping.Tcp}}", "dns", webEndpoint)
	require.Equal(t, 0, status, stderr)
	assert.Equal(t, "dns {\"53\":\"53530\"}\n {\"443\":\"8443\",\"80\":\"8080\"}\n", stdout)

	_, stderr, status = portolan(t, "inspect", "-f", "{{.Nothing", "dns")
	assert.Equal(t, 2, status)
	assert.Contains(t, stderr, "portolan inspect: template: --format:1: unclosed action\n")
}

func TestInspectNames(t *testing.T) {
	tests := []struct {
		name  string
		names []string
		want  []string // endpoints
		owner string   // of the first
		err   string
	}{
		{"an endpoint", []string{webEndpoint}, []string{webEndpoint}, "", ""},
		{"the start of an endpoint's ID", []string{"4f1c"}, []string{webEndpoint}, "", ""},
		{"a container that the daemon knows", []string{"dns"}, []string{dnsEndpoint}, "dns", ""},
		{"its ID", []string{"d0d0caca00000000"}, []string{dnsEndpoint}, "dns", ""},
		{"the start of its ID", []string{"d0d0"}, []string{dnsEndpoint}, "dns", ""},
		{"a container that the engine knows", []string{"web"}, []string{webEndpoint}, "web", ""},
		{"the ID that docker ps shows", []string{webContainer[:12]}, []string{webEndpoint}, "web", ""},
		{"two at once", []string{"dns", "web"}, []string{dnsEndpoint, webEndpoint}, "dns", ""},
		{"a start of two IDs", []string{"4f"}, nil, "", "portolan inspect: 4f is the start of 2 IDs; give more of it\n"},
		{"nobody", []string{"nobody"}, nil, "", "portolan inspect: no such container or endpoint: nobody\n"},
		{"one of two", []string{"nobody", "dns"}, []string{dnsEndpoint}, "dns", "portolan inspect: no such container or endpoint: nobody\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			newFakeDaemon(t, testEndpoints()...)
			fakeEngine(t)
			stdout, stderr, status := portolan(t, append([]string{"inspect"}, tt.names...)...)
			assert.Equal(t, tt.err, stderr)
			assert.Equal(t, tt.err != "", status == 1)
			var got []inspection
			require.NoError(t, json.Unmarshal([]byte(stdout), &got))
			var ids []string
			for _, i := range got {
				ids = append(ids, i.EndpointID)
			}
			assert.Equal(t, tt.want, ids)
			if len(got) > 0 {
				assert.Equal(t, tt.owner, got[0].ContainerName)
			} else {
				assert.Equal(t, "[]\n", stdout)
			}
		})
	}
}

func TestInspectTellsTheDaemonWhoseAnEndpointIs(t *testing.T) {
	d := newFakeDaemon(t, testEndpoints()...)
	fakeEngine(t)
	_, stderr, status := portolan(t, "inspect", "web")
	require.Equal(t, 0, status, stderr)
	d.mu.Lock()
	defer d.mu.Unlock()
	assert.Equal(t, []driver.SetOwnerRequest{{EndpointID: webEndpoint, ContainerID: webContainer, ContainerName: "web"}}, d.owners)
}

func TestInspectAContainerOfTwoNetworks(t *testing.T) {
	eps := testEndpoints()
	eps[0].Owner = &store.Owner{ContainerID: "d0d0caca00000000", ContainerName: "dns"}
	newFakeDaemon(t, eps...)
	noEngine(t)
	for _, name := range []string{"dns", "d0d0"} {
		stdout, _, status := portolan(t, "inspect", name)
		require.Equal(t, 0, status)
		var got []inspection
		require.NoError(t, json.Unmarshal([]byte(stdout), &got))
		assert.Len(t, got, 2)
	}
}

func TestInspectWithoutAnEngine(t *testing.T) {
	newFakeDaemon(t, testEndpoints()...)
	noEngine(t)
	stdout, stderr, status := portolan(t, "inspect", "web")
	assert.Equal(t, 1, status)
	assert.Equal(t, "[]\n", stdout)
	assert.Regexp(t, `^portolan inspect: no such endpoint: web; nor can its container be looked up: ask the engine at .*none\.sock: .*no such file or directory\n$`, stderr)
}

func TestInspectAContainerThatIsNotOurs(t *testing.T) {
	newFakeDaemon(t, testEndpoints()[1])
	fakeEngine(t)
	stdout, stderr, status := portolan(t, "inspect", "web")
	assert.Equal(t, 1, status)
	assert.Equal(t, "[]\n", stdout)
	assert.Equal(t, "portolan inspect: container web is on no network of Portolan's, or does not run\n", stderr)
}
