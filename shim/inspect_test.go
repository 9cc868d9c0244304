package shim

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

// settings are what an inspected container has for clients.
type settings struct {
	NetworkSettings struct {
		Ports       map[string][]portmap.HostPort
		PortMapping map[string]map[string]string
	}
}

func TestInspect(t *testing.T) {
	for _, version := range versions {
		for _, name := range []string{"web", "both"} {
			t.Run(version+"/"+name, func(t *testing.T) {
				body := fixture(t, version, name+".json")
				r := newRig(t, always(200, body))
				r.daemon.endpoints = fixtureEndpoints(t, version)
				resp, got := r.do(http.MethodGet, "/v1.41/containers/"+name+"/json?size=1", "")
				assert.Equal(t, int64(len(got)), resp.ContentLength)
				var c settings
				require.NoError(t, json.Unmarshal([]byte(got), &c))
				ports := c.NetworkSettings.Ports
				switch name {
				case "web":
					assert.Len(t, ports, 14)
					assert.Equal(t, []portmap.HostPort{{HostIP: "0.0.0.0", HostPort: "53530"}}, ports["53/udp"])
					assert.Equal(t, []portmap.HostPort{{HostIP: "127.0.0.1", HostPort: "9000"}}, ports["90/tcp"])
					assert.Contains(t, ports, "7777/tcp")
					assert.Nil(t, ports["7777/tcp"], "exposed, not published")
					assert.Equal(t, map[string]string{"80": "8080", "90": "9000"}, c.NetworkSettings.PortMapping["Tcp"])
					assert.Equal(t, "53530", c.NetworkSettings.PortMapping["Udp"]["53"])
				case "both":
					assert.Equal(t, map[string][]portmap.HostPort{
						"80/tcp": {{HostIP: "0.0.0.0", HostPort: "8083"}, {HostIP: "::", HostPort: "8083"}}, "98/tcp": nil,
					}, ports)
					assert.Equal(t, map[string]map[string]string{"Tcp": {"80": "8083"}, "Udp": {}}, c.NetworkSettings.PortMapping)
				}
				assert.Equal(t, cut(t, body), cut(t, got), "nothing but the ports has changed")
			})
		}
	}
}

// Names with a slash are aliases of links, and the engine's route takes them.
func TestInspectByAlias(t *testing.T) {
	r := newRig(t, always(200, fixture(t, "20.10", "web.json")))
	r.daemon.endpoints = fixtureEndpoints(t, "20.10")
	assert.Contains(t, r.get("/containers/other/web/json"), `"PortMapping"`)
}

func TestInspectText(t *testing.T) {
	ep := endpoint([]portmap.Mapping{
		{Proto: portmap.TCP, HostPort: 8080, HostPortEnd: 8081, Port: 80},
		{Proto: portmap.SCTP, HostPort: 9, HostPortEnd: 9, Port: 9},
	}, portmap.ExposedPort{Proto: portmap.UDP, Port: 100})
	const networks = `"Networks":{"n":{"EndpointID":"e"}}`
	tests := []struct{ name, engine, want string }{
		{
			"none of the engine's", `"Ports":{},"x":1e2`,
			`"Ports":{"100/udp":null,"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}],` +
				`"81/tcp":[{"HostIp":"0.0.0.0","HostPort":"8081"},{"HostIp":"::","HostPort":"8081"}],` +
				`"9/sctp":[{"HostIp":"0.0.0.0","HostPort":"9"},{"HostIp":"::","HostPort":"9"}]},` +
				`"PortMapping":{"Sctp":{"9":"9"},"Tcp":{"80":"8080","81":"8081"},"Udp":{}},"x":1e2`,
		}, {
			"the engine's stay as they are", `"Ports":{"7/tcp":null,"80/tcp":[{"HostPort":"70","HostIp":"0.0.0.0","x":1.0}],"100/udp":[{"HostIp":"","HostPort":""}]},"PortMapping":null`,
			`"Ports":{"100/udp":[{"HostIp":"","HostPort":""}],"7/tcp":null,` +
				`"80/tcp":[{"HostPort":"70","HostIp":"0.0.0.0","x":1.0},{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}],` +
				`"81/tcp":[{"HostIp":"0.0.0.0","HostPort":"8081"},{"HostIp":"::","HostPort":"8081"}],` +
				`"9/sctp":[{"HostIp":"0.0.0.0","HostPort":"9"},{"HostIp":"::","HostPort":"9"}]},` +
				`"PortMapping":{"Sctp":{"9":"9"},"Tcp":{"80":"70","81":"8081"},"Udp":{}}`,
		}, {
			"null", `"Ports":null`,
			`"Ports":{"100/udp":null,"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}],` +
				`"81/tcp":[{"HostIp":"0.0.0.0","HostPort":"8081"},{"HostIp":"::","HostPort":"8081"}],` +
				`"9/sctp":[{"HostIp":"0.0.0.0","HostPort":"9"},{"HostIp":"::","HostPort":"9"}]},` +
				`"PortMapping":{"Sctp":{"9":"9"},"Tcp":{"80":"8080","81":"8081"},"Udp":{}}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wrap := func(s string) string { return `{"NetworkSettings":{` + s + `,` + networks + `}}` }
			got := editInspect([]byte(wrap(tt.engine)), map[string]Endpoint{"e": ep})
			assert.Equal(t, wrap(tt.want), string(got))
		})
	}
}

// A container on a network of Portolan's that publishes nothing has an empty
// PortMapping: it tells the two kinds of networks apart.
func TestInspectNoPorts(t *testing.T) {
	const body = `{"NetworkSettings":{"Ports":{},"Networks":{"n":{"EndpointID":"e"}}}}`
	got := editInspect([]byte(body), map[string]Endpoint{"e": {}})
	assert.Equal(t, `{"NetworkSettings":{"Ports":{},"PortMapping":{"Tcp":{},"Udp":{}},"Networks":{"n":{"EndpointID":"e"}}}}`, string(got))
}
