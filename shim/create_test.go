package shim

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// creator is an engine with plugins and networks, that remembers what it was
// asked to create.
type creator struct {
	plugins string // the answer of GET /plugins; empty: an error
	refuse  string // why it makes no networks

	mu       sync.Mutex // guards below
	networks map[string]map[string]any
	bodies   []string // of the clients' requests
	made     int      // networks
}

func (c *creator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	path := unversioned(r.URL.Path)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case path == "/plugins" && c.plugins != "":
		writeJSON(w, 200, c.plugins)
	case strings.HasPrefix(path, "/networks/") && r.Method == http.MethodGet:
		n, ok := c.networks[strings.TrimPrefix(path, "/networks/")]
		if !ok {
			writeJSON(w, 404, `{"message":"no such network"}`)
			return
		}
		text, _ := json.Marshal(n)
		writeJSON(w, 200, string(text))
	case path == "/networks/create" && c.refuse != "":
		writeJSON(w, 500, `{"message":"`+c.refuse+`"}`)
	case path == "/networks/create":
		var n map[string]any
		_ = json.Unmarshal(body, &n)
		name, _ := n["Name"].(string)
		if c.networks[name] != nil && n["CheckDuplicate"] == true {
			writeJSON(w, 409, `{"message":"already exists"}`)
			return
		}
		// As in engine 20.10, two may come this far.
		c.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
		c.mu.Lock()
		c.made++
		if name != "" {
			c.networks[name] = n
		}
		c.bodies = append(c.bodies, string(body))
		writeJSON(w, 201, `{"Id":"n","Warning":""}`)
	case path == "/containers/create":
		c.bodies = append(c.bodies, string(body))
		writeJSON(w, 201, `{"Id":"c","Warnings":[]}`+"\n")
	default:
		writeJSON(w, 500, `{"message":"what?"}`)
	}
}

// last is the body of the last request of a client's.
func (c *creator) last() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bodies[len(c.bodies)-1]
}

func newCreator(t *testing.T, takeOver bool) (*rig, *creator) {
	c := &creator{plugins: fixture(t, "20.10", "plugins.json"), networks: map[string]map[string]any{}}
	r := newRig(t, c.ServeHTTP, func(cfg *Config) {
		cfg.TakeOver, cfg.Options = takeOver, []string{"com.docker.network.driver.mtu"}
	})
	var plugins []managed
	require.NoError(t, json.Unmarshal([]byte(c.plugins), &plugins))
	r.daemon.socket = "/run/docker/plugins/" + plugins[0].ID + "/portolan.sock"
	return r, c
}

// The short name is that of the installed plugin, and the rest of the request
// is the client's.
func TestShortName(t *testing.T) {
	const managed = `{"Name":"NAME","Enabled":true,"Config":{"Interface":{"Types":["docker.networkdriver/1.0"]}}}`
	plugin := func(names ...string) string {
		var all []string
		for _, n := range names {
			all = append(all, strings.Replace(managed, "NAME", n, 1))
		}
		return "[" + strings.Join(all, ",") + "]"
	}
	tests := []struct{ name, plugins, body, want string }{
		{"the recorded one", fixture(t, "20.10", "plugins.json"), `{"Name":"n", "Driver":"portolan","x":1.0}`, `{"Name":"n", "Driver":"portolan:latest","x":1.0}`},
		{"of engine 29", fixture(t, "29", "plugins.json"), `{"Driver":"portolan"}`, `{"Driver":"portolan:latest"}`},
		{"with a registry", plugin("registry.example:5000/me/portolan:1.2"), `{"driver" : "portolan"}`, `{"driver" : "registry.example:5000/me/portolan:1.2"}`},
		{"the alias before others", plugin("a/portolan:1", "portolan:latest"), `{"Driver":"portolan"}`, `{"Driver":"portolan:latest"}`},
		{"the first of others", plugin("b/portolan:1", "a/portolan:2"), `{"Driver":"portolan"}`, `{"Driver":"a/portolan:2"}`},
		{"not of that name", plugin("a/portolan2:1", "portolan/x:1"), `{"Driver":"portolan"}`, `{"Driver":"portolan"}`},
		{"disabled", strings.Replace(plugin("portolan:latest"), "true", "false", 1), `{"Driver":"portolan"}`, `{"Driver":"portolan"}`},
		{"no network driver", strings.Replace(plugin("portolan:latest"), "networkdriver", "volumedriver", 1), `{"Driver":"portolan"}`, `{"Driver":"portolan"}`},
		{"none", `[]`, `{"Driver":"portolan"}`, `{"Driver":"portolan"}`},
		{"not known", ``, `{"Driver":"portolan"}`, `{"Driver":"portolan"}`},
		{"a full name", plugin("portolan:latest"), `{"Driver":"portolan:v2"}`, `{"Driver":"portolan:v2"}`},
		{"another driver", plugin("portolan:latest"), `{"Driver":"bridge"}`, `{"Driver":"bridge"}`},
		{"no driver", plugin("portolan:latest"), `{"Name":"n"}`, `{"Name":"n"}`},
		{"odd", plugin("portolan:latest"), `{"Driver":["portolan"]}`, `{"Driver":["portolan"]}`},
		{"broken", plugin("portolan:latest"), `{"Driver":"portolan"`, `{"Driver":"portolan"`},
		{"no object", plugin("portolan:latest"), `"portolan"`, `"portolan"`},
		{"too long", plugin("portolan:latest"), `{"Driver":"portolan"}` + strings.Repeat(" ", maxRequest), `{"Driver":"portolan"}` + strings.Repeat(" ", maxRequest)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, c := newCreator(t, false)
			c.plugins = tt.plugins
			resp, body := r.do(http.MethodPost, "/v1.41/networks/create", tt.body)
			assert.Equal(t, 201, resp.StatusCode)
			assert.Equal(t, `{"Id":"n","Warning":""}`, body)
			assert.Equal(t, tt.want, c.last())
		})
	}
}

// A body in chunks is rewritten, and is as long as it says.
func TestShortNameInChunks(t *testing.T) {
	r, c := newCreator(t, false)
	for _, body := range []string{`{"Driver":"portolan"}`, strings.Repeat(" ", maxRequest) + `{"Driver":"portolan"}`} {
		resp, err := client(t, r.api).Post("http://docker/networks/create", "application/json", io.MultiReader(strings.NewReader(body)))
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, 201, resp.StatusCode)
	}
	assert.Equal(t, `{"Driver":"portolan:latest"}`, c.bodies[0])
	assert.Len(t, c.bodies[1], maxRequest+21)
}
