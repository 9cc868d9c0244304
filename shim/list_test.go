package shim

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What `docker ps` gets of the recorded containers, by name. both is on Docker's
// bridge and on a network of Portolan's; the bridge publishes.
func wantPorts(name string) []string {
	switch name {
	case "/web":
		want := []string{"0.0.0.0:53530->53/udp", "0.0.0.0:8080->80/tcp", "127.0.0.1:9000->90/tcp", "7777/tcp"}
		for i := 10000; i < 10010; i++ {
			want = append(want, fmt.Sprintf("0.0.0.0:%d->%d/udp", i, i))
		}
		return want
	case "/six":
		return []string{"0.0.0.0:8081->80/tcp", ":::8081->80/tcp", "0.0.0.0:32768->81/tcp", ":::32768->81/tcp"}
	case "/both":
		return []string{"0.0.0.0:8083->80/tcp", ":::8083->80/tcp", "98/tcp"}
	case "/plain":
		return []string{"0.0.0.0:8082->80/tcp", ":::8082->80/tcp", "99/tcp"}
	}
	return nil
}

// listedPorts is a container of a list as clients decode it.
type listedPorts struct {
	Names []string
	Ports []struct {
		IP, Type                string
		PrivatePort, PublicPort uint16
	}
}

func (c listedPorts) ports() (ports []string) {
	for _, p := range c.Ports {
		text := fmt.Sprintf("%d/%s", p.PrivatePort, p.Type)
		if p.PublicPort != 0 {
			text = fmt.Sprintf("%s:%d->%s", p.IP, p.PublicPort, text)
		}
		ports = append(ports, text)
	}
	return ports
}

// cut is a JSON text without the values of Ports and PortMapping: what is to
// stay byte for byte.
func cut(t *testing.T, text string) string {
	d, root, ok := parse([]byte(text))
	require.True(t, ok, text)
	var edits []edit
	var walk func(span)
	walk = func(s span) {
		for key, value := range d.members(s) {
			switch name, _ := d.str(key); name {
			case "Ports":
				edits = append(edits, edit{value, nil})
			case "PortMapping": // with the comma and the colon
				edits = append(edits, edit{span{key.from - 1, value.to}, nil})
			default:
				walk(value)
			}
		}
		for e := range d.elements(s) {
			walk(e)
		}
	}
	walk(root)
	require.NotEmpty(t, edits)
	return string(d.apply(edits))
}

func TestList(t *testing.T) {
	for _, version := range versions {
		t.Run(version, func(t *testing.T) {
			body := fixture(t, version, "list.json")
			r := newRig(t, always(200, body))
			r.daemon.endpoints = fixtureEndpoints(t, version)
			for _, path := range []string{"/containers/json", "/v1.41/containers/json?all=1", "/v1.24/containers/json?limit=3"} {
				got := r.get(path)
				var list []listedPorts
				require.NoError(t, json.Unmarshal([]byte(got), &list))
				require.Len(t, list, 5)
				for _, c := range list {
					assert.ElementsMatch(t, wantPorts(c.Names[0]), c.ports(), c.Names[0])
				}
				assert.Equal(t, cut(t, body), cut(t, got), "nothing but the ports has changed")
			}
		})
	}
}

func TestDiskUsage(t *testing.T) {
	files := map[string]int{"20.10/df.json": 5, "29/df.json": 5, "29/df-verbose.json": 5}
	for file, n := range files {
		t.Run(file, func(t *testing.T) {
			version, name, _ := strings.Cut(file, "/")
			body := fixture(t, version, name)
			r := newRig(t, always(200, body))
			r.daemon.endpoints = fixtureEndpoints(t, version)
			got := r.get("/v1.41/system/df")
			var usage struct {
				Containers     []listedPorts
				ContainerUsage struct{ Items []listedPorts }
			}
			require.NoError(t, json.Unmarshal([]byte(got), &usage))
			seen := 0
			for _, c := range append(usage.Containers, usage.ContainerUsage.Items...) {
				seen++
				assert.ElementsMatch(t, wantPorts(c.Names[0]), c.ports(), c.Names[0])
			}
			assert.GreaterOrEqual(t, seen, n)
			assert.Equal(t, cut(t, body), cut(t, got))
		})
	}
}

// What the shim has nothing to say about, or cannot read, comes as it is.
func TestUntouched(t *testing.T) {
	list := fixture(t, "20.10", "list.json")
	endpoints := fixtureEndpoints(t, "20.10")
	tests := []struct {
		name, body string
		path       string
	}{
		{"broken", list[:len(list)-20], "/containers/json"},
		{"broken at once", `}`, "/containers/json"},
		{"empty", ``, "/containers/json"},
		{"an object", `{"message":"what?"}`, "/containers/json"},
		{"odd", `[1,null,"x",{},{"Ports":7},{"NetworkSettings":7},{"NetworkSettings":{"Networks":[1]}}]`, "/containers/json"},
		{"none", "[]\n", "/containers/json"},
		{"a bridge container", fixture(t, "20.10", "plain.json"), "/containers/plain/json"},
		{"broken inspect", fixture(t, "20.10", "web.json")[:900], "/containers/web/json"},
		{"odd inspect", `{"NetworkSettings":{"Networks":{"a":{"EndpointID":1},"b":null}}}`, "/containers/web/json"},
		{"an array", `[]`, "/containers/web/json"},
		{"something else", list, "/containers/web/top"},
		{"no name", list, "/containers//json"},
		{"another version", list, "/v/containers/json"},
		{"another API", list, "/vx/containers/json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, always(200, tt.body))
			r.daemon.endpoints = endpoints
			assert.Equal(t, tt.body, r.get(tt.path))
		})
	}
}
