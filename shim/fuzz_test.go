package shim

import (
	"bytes"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

// fuzzEndpoints have IDs that a fuzzer finds.
var fuzzEndpoints = map[string]Endpoint{
	"e": endpoint([]portmap.Mapping{{Proto: portmap.UDP, HostPort: 5, HostPortEnd: 7, Port: 8}}, portmap.ExposedPort{Proto: portmap.TCP, Port: 8}),
	"":  endpoint(nil, portmap.ExposedPort{Proto: portmap.TCP, Port: 9}),
}

// decode is a JSON text as encoding/json has it, without the members of any
// object that are named, in either case.
func decode(t *testing.T, text []byte, without ...string) any {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	require.NoError(t, d.Decode(&v), "%q", text)
	require.True(t, json.Valid(text), "%q", text)
	drop(v, without)
	return v
}

func drop(v any, names []string) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			drop(e, names)
		}
	case map[string]any:
		for key, value := range v {
			for _, name := range names {
				if strings.EqualFold(key, name) {
					delete(v, key)
				}
			}
			drop(value, names)
		}
	}
}

// same fails unless two texts are equal but for the members named. No edit at
// all is nil.
func same(t *testing.T, before, after []byte, but ...string) {
	if after == nil {
		return
	}
	assert.Equal(t, decode(t, before, but...), decode(t, after, but...), "%q became %q", before, after)
}

// addRecorded adds answers of real engines as seeds.
func addRecorded(f *testing.F, names ...string) {
	for _, name := range names {
		files, err := filepath.Glob(filepath.Join("testdata", "*", name))
		require.NoError(f, err)
		require.NotEmpty(f, files, name)
		for _, file := range files {
			body, err := os.ReadFile(file)
			require.NoError(f, err)
			f.Add(body)
		}
	}
}

func FuzzList(f *testing.F) {
	addRecorded(f, "list.json", "df*.json")
	f.Add([]byte(`[{"Id":"c","Names":["/a"],"Ports":[],"Labels":{},"NetworkSettings":{"Networks":{"n":{"EndpointID":"e"}}},"Mounts":[]}]`))
	f.Add([]byte(`[{"Ports":[{"PrivatePort":8,"Type":"udp","IP":"::","PublicPort":5}],"NetworkSettings":{"Networks":{"n":{"EndpointID":"e"}}}}]`))
	f.Add([]byte(`{"Containers":[{"ports":null,"NetworkSettings":{"Networks":{"":{"EndpointID":"\u0065"}}}}],"ContainerUsage":{"Items":[{"Ports":[]}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		same(t, body, editList(body, fuzzEndpoints), "Ports")
		same(t, body, editDiskUsage(body, fuzzEndpoints), "Ports")
		sel := &selection{expose: []portRange{{"tcp", 0, 65535}, {"udp", 0, 65535}}}
		if list := selectList(body, fuzzEndpoints, sel); list != nil {
			assert.IsType(t, []any{}, decode(t, list))
		}
	})
}

func FuzzInspect(f *testing.F) {
	addRecorded(f, "web.json", "both.json", "plain.json")
	f.Add([]byte(`{"Id":"c","NetworkSettings":{"Bridge":"","Ports":{"8/udp":null,"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"80"}]},"Networks":{"n":{"EndpointID":"e"}}}}`))
	f.Add([]byte(`{"NetworkSettings":{"PortMapping":1,"Ports":{"8/udp":[{"HostIp":"::","HostPort":"5"}],"9/x\"":null},"Networks":{"n":{"EndpointID":"e"}}}}`))
	f.Add([]byte(`{"networksettings":{"ports":[],"networks":{"n":{"endpointid":""}}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		same(t, body, editInspect(body, fuzzEndpoints), "Ports", "PortMapping")
	})
}

func FuzzCreate(f *testing.F) {
	f.Add([]byte(`{"Name":"n","Driver":"bridge","Options":{"a":"b"},"ConfigFrom":null}`))
	f.Add([]byte(`{"HostConfig":{"PortBindings":{"80/tcp":[]},"NetworkMode":"default"},"NetworkingConfig":{"EndpointsConfig":{"bridge":{"x":1}}}}`))
	f.Add([]byte(`{"hostconfig":{"publishallports":true}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		d, root, ok := parse(body)
		if !ok || d[root.from] != '{' {
			return
		}
		if d.takesOver(root, []string{"a"}) {
			edited := d.apply([]edit{d.set(root, "Driver", []byte(`"x"`))})
			same(t, body, edited, "Driver")
			e, root, _ := parse(edited)
			assert.False(t, e.takesOver(root, []string{"a"}), "%q", edited)
		}
		if d.publishesOnBridge(root) {
			edited := d.apply(d.moveToDefault(root))
			same(t, body, edited, "NetworkMode", "default", "bridge", defaultNetwork)
			e, root, _ := parse(edited)
			assert.False(t, e.publishesOnBridge(root), "%q", edited)
		}
		same(t, body, warn(201, "w").edit(body), "Warnings")
	})
}

func FuzzSelection(f *testing.F) {
	f.Add(`all=1&limit=3&filters=` + url.QueryEscape(`{"publish":["80-90/udp"],"expose":["1"],"name":["x"]}`))
	f.Add(`filters=` + url.QueryEscape(`{"publish":{"80":false}}`))
	f.Fuzz(func(t *testing.T, query string) {
		_, wider, ok := parseSelection(query)
		if !ok {
			return
		}
		values, err := url.ParseQuery(wider)
		require.NoError(t, err)
		rest, ok := parseFilters(values.Get("filters"))
		assert.True(t, ok)
		assert.NotContains(t, rest, "publish")
		assert.NotContains(t, rest, "expose")
	})
}

// FuzzEvents reads any bytes as an engine's events: it ends with an error, as
// the events of an engine do, and looks up nothing that none has named.
func FuzzEvents(f *testing.F) {
	addRecorded(f, "events.json")
	f.Add([]byte(`{"Type":"network","Actor":{"ID":"n","Attributes":{"container":"c"}}}{"Type":"container","Actor":{"ID":"c"}}`))
	f.Add([]byte(`{"Type":"network","Actor":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		todo := newAgenda()
		require.Error(t, readEvents(bytes.NewReader(body), todo))
		_, ids := todo.take()
		for _, id := range ids {
			assert.NotEmpty(t, id)
		}
	})
}
