package shim

import (
	"encoding/json"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParsePortRange(t *testing.T) {
	tests := []struct {
		value string
		want  portRange
		ok    bool
	}{
		{"80", portRange{"tcp", 80, 80}, true},
		{"80/tcp", portRange{"tcp", 80, 80}, true},
		{"80/", portRange{"tcp", 80, 80}, true},
		{"53/udp", portRange{"udp", 53, 53}, true},
		{"8000-8010/sctp", portRange{"sctp", 8000, 8010}, true},
		{"8000-8000", portRange{"tcp", 8000, 8000}, true},
		{"0", portRange{"tcp", 0, 0}, true},
		{"0-65535/new", portRange{"new", 0, 65535}, true},
		// Errors of the engine's,
		{"", portRange{}, false},
		{"/tcp", portRange{}, false},
		{"a", portRange{}, false},
		{"80:80", portRange{}, false},
		{"65536", portRange{}, false},
		{"81-80", portRange{}, false},
		{"-80", portRange{}, false},
		{"80-", portRange{}, false},
		{"+80", portRange{}, false},
		{" 80", portRange{}, false},
		// and what one version takes and another does not.
		{"80/TCP", portRange{}, false},
		{"80-90-100", portRange{}, false},
		{"80/tcp/udp", portRange{}, false},
	}
	for _, tt := range tests {
		got, ok := parsePortRange(tt.value)
		if assert.Equal(t, tt.ok, ok, "%q", tt.value) && ok {
			assert.Equal(t, tt.want, got, "%q", tt.value)
		}
	}
}

// The recorded containers, newest first: stopped, both, plain, six, web. What
// the engine is asked for, and what the client gets.
func TestFilters(t *testing.T) {
	tests := []struct {
		name, filters, more string
		engine              string // the query; empty: that of the client
		want                []string
	}{
		{"a range of ours", `{"publish":["8080"]}`, "", "filters={}", []string{"/web"}},
		{"the other form", `{"publish":{"8080":true}}`, "", "filters={}", []string{"/web"}},
		{"in which false is true", `{"publish":{"8080":false}}`, "", "filters={}", []string{"/web"}},
		{"within a range", `{"publish":["10007/udp"]}`, "", "filters={}", []string{"/web"}},
		{"of another protocol", `{"publish":["10007"]}`, "", "filters={}", []string{}},
		{"of Docker's bridge as well", `{"publish":["8080-8082"]}`, "", "filters={}", []string{"/plain", "/six", "/web"}},
		{"one of two", `{"publish":["8081","53530/udp"]}`, "", "filters={}", []string{"/six", "/web"}},
		{"exposed", `{"expose":["80"]}`, "", "filters={}", []string{"/both", "/plain", "/six", "/web"}},
		{"exposed only", `{"expose":["7777","98/tcp"]}`, "", "filters={}", []string{"/both", "/web"}},
		{"published is not exposed", `{"publish":["80"]}`, "", "filters={}", []string{}},
		{"either", `{"publish":["8081"],"expose":["99"]}`, "", "filters={}", []string{"/plain", "/six"}},
		{"no port", `{"publish":["0"]}`, "", "filters={}", []string{"/both", "/plain", "/web"}},
		{"with others", `{"publish":["1-65535"],"label":["a=b"],"status":["running"]}`, "all=0&size=1", `all=0&filters={"label":["a=b"],"status":["running"]}&size=1`, []string{"/both", "/plain", "/six", "/web"}},
		{"limit", `{"expose":["80"]}`, "limit=2", "all=1&filters={}", []string{"/both", "/plain"}},
		{"limit that is larger", `{"expose":["80"]}`, "all=0&limit=9", "all=1&filters={}", []string{"/both", "/plain", "/six", "/web"}},
		{"no limit", `{"expose":["7777"]}`, "limit=0", "filters={}", []string{"/web"}},
		{"before and since", `{"expose":["80"],"before":["x"],"since":["y"]}`, "limit=1", `all=1&filters={"before":["x"],"since":["y"]}`, []string{"/both"}},

		{"none", `{}`, "limit=2", "", nil},
		{"none of ours", `{"name":["publish"]}`, "", "", nil},
		{"without a value", `{"publish":{}}`, "limit=2", "", nil},
		{"wrong", `{"publish":["8080","x"]}`, "limit=2", "", nil},
		{"wrong limit", `{"publish":["8080"]}`, "limit=x", "", nil},
		{"no JSON", `publish=80`, "", "", nil},
		{"wrong form", `{"publish":["8080"],"name":{"a":true}}`, "", "", nil},
		{"another wrong form", `{"publish":"8080"}`, "", "", nil},
	}
	for _, version := range versions {
		body := fixture(t, version, "list.json")
		var query atomic.Value
		r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
			query.Store(r.URL.RawQuery)
			writeJSON(w, 200, body)
		})
		r.daemon.endpoints = fixtureEndpoints(t, version)
		for _, tt := range tests {
			t.Run(version+"/"+tt.name, func(t *testing.T) {
				asked := tt.more + "&filters=" + url.QueryEscape(tt.filters)
				got := r.get("/v1.41/containers/json?" + asked)
				if tt.engine == "" {
					assert.Equal(t, asked, query.Load())
					tt.want = []string{"/stopped", "/both", "/plain", "/six", "/web"}
				} else {
					plain, err := url.QueryUnescape(query.Load().(string))
					require.NoError(t, err)
					assert.Equal(t, tt.engine, plain)
				}
				var list []listedPorts
				require.NoError(t, json.Unmarshal([]byte(got), &list))
				names := []string{}
				for _, c := range list {
					names = append(names, c.Names[0])
					assert.ElementsMatch(t, wantPorts(c.Names[0]), c.ports(), c.Names[0])
				}
				assert.Equal(t, tt.want, names)
			})
		}
	}
}

// Where the wider list cannot be used the engine decides as it would alone.
func TestFilterFallsBack(t *testing.T) {
	for name, wider := range map[string]string{"broken": `[{"Ports"`, "an object": `{}`, "no ports": `[{}]`, "odd ports": `[{"Ports":[7]}]`} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.RawQuery == publish80() {
					writeJSON(w, 200, `["the engine's"]`)
					return
				}
				writeJSON(w, 200, wider)
			})
			r.daemon.endpoints = map[string]Endpoint{"e": {}}
			assert.Equal(t, `["the engine's"]`, r.get("/containers/json?"+publish80()))
		})
	}
	r := newRig(t, always(500, `{"message":"bad filter"}`))
	r.daemon.endpoints = map[string]Endpoint{"e": {}}
	resp, body := r.do(http.MethodGet, "/containers/json?"+publish80(), "")
	assert.Equal(t, 500, resp.StatusCode)
	assert.Equal(t, `{"message":"bad filter"}`, body, "an error is an error")
}
