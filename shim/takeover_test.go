package shim

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTakeOverNetworks(t *testing.T) {
	tests := []struct{ name, body, want string }{
		{"no driver", `{"Name":"n"}`, `{"Driver":"portolan:latest","Name":"n"}`},
		{"empty driver", `{"Name":"n","Driver":""}`, `{"Name":"n","Driver":"portolan:latest"}`},
		{"null", `{"Driver":null}`, `{"Driver":"portolan:latest"}`},
		{"bridge", `{"Driver":"bridge","Options":{"com.docker.network.driver.mtu":"1400"},"EnableIPv6":true}`, `{"Driver":"portolan:latest","Options":{"com.docker.network.driver.mtu":"1400"},"EnableIPv6":true}`},
		{"all that the docker command sends", `{"CheckDuplicate":true,"Driver":"bridge","Scope":"","IPAM":{"Driver":"default","Config":[]},"Internal":true,"Attachable":false,"Ingress":false,"ConfigOnly":false,"ConfigFrom":null,"Options":{},"Labels":{},"Name":"n"}`, `{"CheckDuplicate":true,"Driver":"portolan:latest","Scope":"","IPAM":{"Driver":"default","Config":[]},"Internal":true,"Attachable":false,"Ingress":false,"ConfigOnly":false,"ConfigFrom":null,"Options":{},"Labels":{},"Name":"n"}`},
		{"local scope", `{"Scope":"local"}`, `{"Driver":"portolan:latest","Scope":"local"}`},
		{"short name", `{"Driver":"portolan"}`, `{"Driver":"portolan:latest"}`},

		{"another driver", `{"Driver":"macvlan"}`, ``},
		{"host", `{"Driver":"host"}`, ``},
		{"a driver that the engine refuses", `{"Driver":"default"}`, ``},
		{"swarm", `{"Scope":"swarm"}`, ``},
		{"ingress", `{"Ingress":true}`, ``},
		{"config only", `{"ConfigOnly":true}`, ``},
		{"config from", `{"ConfigFrom":{"Network":"x"}}`, ``},
		{"docker0", `{"Options":{"com.docker.network.bridge.default_bridge":"true"}}`, ``},
		{"an option that Docker's bridge ignores", `{"Options":{"com.docker.network.driver.mtu":"1400","foo":"bar"}}`, ``},
		{"odd scope", `{"Scope":1}`, ``},
		{"broken", `{"Name":`, ``},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, c := newCreator(t, true)
			r.do(http.MethodPost, "/networks/create", tt.body)
			if tt.want == "" {
				tt.want = tt.body
			}
			assert.Equal(t, tt.want, c.last())
		})
	}
}

// The driver is the plugin that has the daemon's socket, or the socket itself.
func TestTakeOverDriver(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	plugin := func(id, name string) string {
		return fmt.Sprintf(`[{"Id":%q,"Name":%q,"Enabled":true,"Config":{"Interface":{"Types":["docker.networkdriver/1.0"]}}}]`, id, name)
	}
	for _, tt := range []struct {
		name, plugins, socket string
		away                  error
		want                  string // empty: it stays Docker's
	}{
		{"a service", `[]`, "/run/docker/plugins/portolan.sock", nil, "portolan"},
		{"a service under another name", `[]`, "/run/docker/plugins/ports.sock", nil, "ports"},
		{"a service beside a plugin", plugin(id, "portolan:latest"), "/run/docker/plugins/portolan.sock", nil, "portolan"},
		{"a plugin under another name", plugin(id, "ports:v1"), "/run/docker/plugins/" + id + "/portolan.sock", nil, "ports:v1"},
		{"a plugin of another engine", plugin(id[1:]+"0", "portolan:latest"), "/run/docker/plugins/" + id + "/portolan.sock", nil, ""},
		{"plugins not known", ``, "/run/docker/plugins/" + id + "/portolan.sock", nil, ""},
		{"no daemon", plugin(id, "portolan:latest"), "/run/docker/plugins/" + id + "/portolan.sock", errors.New("gone"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, c := newCreator(t, true)
			c.plugins = tt.plugins
			r.daemon.set(func(d *daemon) { d.socket, d.away = tt.socket, tt.away })
			r.do(http.MethodPost, "/networks/create", `{"Driver":"bridge"}`)
			if tt.want == "" {
				assert.Equal(t, `{"Driver":"bridge"}`, c.last())
				assert.Equal(t, 1, r.logged.count("a network stays Docker's"))
				return
			}
			assert.Equal(t, fmt.Sprintf(`{"Driver":%q}`, tt.want), c.last())
		})
	}
}

// A daemon that hangs is no driver that a container could start with.
func TestTakeOverDaemonStuck(t *testing.T) {
	r, c := newCreator(t, true)
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) })
	r.daemon.set(func(d *daemon) { d.stuck = stuck })
	_, body := r.do(http.MethodPost, "/containers/create", publishing)
	assert.Contains(t, body, "this container is on Docker's bridge, not on Portolan")
	assert.Equal(t, publishing, c.last())
	assert.Zero(t, c.made)
}

func TestTakeOverContainers(t *testing.T) {
	const ports = `"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]}`
	tests := []struct{ name, body, want string }{
		{"no network", `{"Image":"i","HostConfig":{` + ports + `}}`, `{"Image":"i","HostConfig":{"NetworkMode":"portolan",` + ports + `}}`},
		{"default", `{"HostConfig":{"NetworkMode":"default",` + ports + `},"NetworkingConfig":{"EndpointsConfig":{}}}`, `{"HostConfig":{"NetworkMode":"portolan",` + ports + `},"NetworkingConfig":{"EndpointsConfig":{}}}`},
		{"no links", `{"HostConfig":{` + ports + `,"NetworkMode":"default","Links":[]}}`, `{"HostConfig":{` + ports + `,"NetworkMode":"portolan","Links":[]}}`},
		{"empty", `{"HostConfig":{"NetworkMode":"",` + ports + `,"Links":null}}`, `{"HostConfig":{"NetworkMode":"portolan",` + ports + `,"Links":null}}`},
		{"settings of the endpoint", `{"NetworkingConfig":{"EndpointsConfig":{"default":{"MacAddress":"02:00:00:00:00:01"}}},"HostConfig":{"NetworkMode":"default",` + ports + `}}`, `{"NetworkingConfig":{"EndpointsConfig":{"portolan":{"MacAddress":"02:00:00:00:00:01"}}},"HostConfig":{"NetworkMode":"portolan",` + ports + `}}`},
		{"and of another one", `{"HostConfig":{"NetworkMode":"default",` + ports + `},"NetworkingConfig":{"EndpointsConfig":{"other":{},"bridge":null}}}`, `{"HostConfig":{"NetworkMode":"portolan",` + ports + `},"NetworkingConfig":{"EndpointsConfig":{"other":{},"portolan":null}}}`},
		{"all exposed ports", `{"HostConfig":{"PublishAllPorts":true}}`, `{"HostConfig":{"NetworkMode":"portolan","PublishAllPorts":true}}`},
		{"a port without a host port", `{"HostConfig":{"PortBindings":{"80/tcp":null}}}`, `{"HostConfig":{"NetworkMode":"portolan","PortBindings":{"80/tcp":null}}}`},

		{"no ports", `{"HostConfig":{"NetworkMode":"default","PortBindings":{},"PublishAllPorts":false}}`, ``},
		{"no settings", `{"Image":"i"}`, ``},
		{"Docker's bridge by name", `{"HostConfig":{"NetworkMode":"bridge",` + ports + `}}`, ``},
		{"a network as an endpoint alone", `{"HostConfig":{` + ports + `},"NetworkingConfig":{"EndpointsConfig":{"n1":{}}}}`, ``},
		{"host", `{"HostConfig":{"NetworkMode":"host",` + ports + `}}`, ``},
		{"none", `{"HostConfig":{"NetworkMode":"none",` + ports + `}}`, ``},
		{"another container's", `{"HostConfig":{"NetworkMode":"container:x",` + ports + `}}`, ``},
		{"a network", `{"HostConfig":{"NetworkMode":"n1",` + ports + `}}`, ``},
		{"links", `{"HostConfig":{` + ports + `,"Links":["db"]}}`, ``},
		{"no networking at all", `{"NetworkDisabled":true,"HostConfig":{` + ports + `}}`, ``},
		{"on it already", `{"HostConfig":{` + ports + `},"NetworkingConfig":{"EndpointsConfig":{"bridge":{},"portolan":{}}}}`, ``},
		{"two defaults", `{"HostConfig":{` + ports + `},"NetworkingConfig":{"EndpointsConfig":{"bridge":{},"default":{}}}}`, ``},
		{"odd", `{"HostConfig":{` + ports + `,"NetworkMode":7}}`, ``},
		{"broken", `{"HostConfig":{` + ports + `}`, ``},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, c := newCreator(t, true)
			resp, body := r.do(http.MethodPost, "/v1.41/containers/create?name=x", tt.body)
			assert.Equal(t, 201, resp.StatusCode)
			assert.Equal(t, `{"Id":"c","Warnings":[]}`+"\n", body)
			if tt.want == "" {
				assert.Equal(t, tt.body, c.last())
				assert.Zero(t, c.made, "no network was made in vain")
				return
			}
			assert.Equal(t, tt.want, c.last())
			assert.Equal(t, 1, c.made)
			assert.Equal(t, map[string]any{
				"Name": "portolan", "CheckDuplicate": true, "Driver": "portolan:latest", "Labels": map[string]any{defaultLabel: "true"},
			}, c.networks["portolan"])
		})
	}
}

const publishing = `{"HostConfig":{"PublishAllPorts":true}}`

// However many come at once, there is one default network.
func TestDefaultNetworkOnce(t *testing.T) {
	r, c := newCreator(t, true)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			resp, err := client(t, r.api).Post("http://docker/containers/create", "application/json", strings.NewReader(publishing))
			if assert.NoError(t, err) {
				resp.Body.Close()
			}
		})
	}
	all.Wait()
	assert.Equal(t, 1, c.made)
	assert.Equal(t, 20, strings.Count(strings.Join(c.bodies, ""), `"NetworkMode":"portolan"`))
}

// A container that cannot be on Portolan is on Docker's bridge, and its user is
// told why.
func TestNoDefaultNetwork(t *testing.T) {
	ours := map[string]any{"Driver": "portolan:latest", "Labels": map[string]any{defaultLabel: ""}}
	tests := []struct {
		name   string
		before func(*rig, *creator)
		want   string // the warning; empty: none
	}{
		{"there", func(_ *rig, c *creator) { c.networks["portolan"] = ours }, ""},
		{"somebody else's", func(_ *rig, c *creator) { c.networks["portolan"] = map[string]any{"Driver": "portolan:latest"} }, "network portolan has no label portolan.take-over"},
		{"another driver's", func(_ *rig, c *creator) {
			c.networks["portolan"] = map[string]any{"Driver": "bridge", "Labels": ours["Labels"]}
		}, "network portolan is of driver bridge, not portolan:latest"},
		{"refused", func(_ *rig, c *creator) { c.refuse = "no addresses left" }, "ask the engine: POST /networks/create: 500 Internal Server Error: no addresses left"},
		{"no daemon", func(r *rig, _ *creator) { r.daemon.away = errors.New("gone") }, "no Portolan daemon answers: gone"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, c := newCreator(t, true)
			tt.before(r, c)
			_, body := r.do(http.MethodPost, "/containers/create", publishing)
			if tt.want == "" {
				assert.Equal(t, `{"Id":"c","Warnings":[]}`+"\n", body)
				assert.Contains(t, c.last(), `"NetworkMode":"portolan"`)
				assert.Zero(t, c.made)
				return
			}
			assert.Equal(t, `{"Id":"c","Warnings":["this container is on Docker's bridge, not on Portolan: `+tt.want+`"]}`+"\n", body)
			assert.Equal(t, publishing, c.last())
			assert.Equal(t, 1, r.logged.count("a container stays on Docker's bridge"))
		})
	}
}

// Somebody else may make the network between our look and our request.
func TestDefaultNetworkMadeMeanwhile(t *testing.T) {
	r, c := newCreator(t, true)
	first := true
	engine := func(w http.ResponseWriter, req *http.Request) {
		if first && req.URL.Path == "/networks/portolan" {
			first = false
			c.networks["portolan"] = map[string]any{"Driver": "portolan:latest", "Labels": map[string]any{defaultLabel: "true"}}
			writeJSON(w, 404, `{"message":"no such network"}`)
			return
		}
		c.ServeHTTP(w, req)
	}
	r.stopEngine()
	r.startEngine(engine)
	_, body := r.do(http.MethodPost, "/containers/create", publishing)
	assert.Equal(t, `{"Id":"c","Warnings":[]}`+"\n", body)
	assert.Contains(t, c.last(), `"NetworkMode":"portolan"`)
}

func TestTakeOverIsOff(t *testing.T) {
	r, c := newCreator(t, false)
	for path, body := range map[string]string{"/containers/create": publishing, "/networks/create": `{"Name":"n"}`} {
		r.do(http.MethodPost, path, body)
		assert.Equal(t, body, c.last())
	}
}

func TestInfo(t *testing.T) {
	for _, version := range versions {
		body := fixture(t, version, "info.json")
		r := newRig(t, always(200, body))
		assert.Equal(t, body, r.get("/info"), "take-over is off")
		r = newRig(t, always(200, body), func(c *Config) { c.TakeOver = true })
		got := r.get("/v1.41/info")
		line := fmt.Sprintf("%q", takeOverWarning)
		require.Contains(t, got, line)
		if strings.Contains(body, `"Warnings":null`) {
			assert.Equal(t, body, strings.Replace(got, `"Warnings":[`+line+`]`, `"Warnings":null`, 1))
		} else {
			assert.Equal(t, body, strings.Replace(got, ","+line, "", 1), "the last of them")
		}
	}
	for body, want := range map[string]string{
		`{"a":1.0}`: `{"Warnings":[LINE],"a":1.0}`, `{"Warnings":[ ]}`: `{"Warnings":[ LINE]}`, `{"Warnings":["x"]}`: `{"Warnings":["x",LINE]}`, `[]`: `[]`, `{`: `{`,
	} {
		r := newRig(t, always(200, body), func(c *Config) { c.TakeOver = true })
		assert.Equal(t, strings.Replace(want, "LINE", fmt.Sprintf("%q", takeOverWarning), 1), r.get("/info"))
	}
}
