package shim

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

// hundred is a list of a hundred containers that publish a port and a range
// each, and what the daemon knows of them.
func hundred(b *testing.B) (list []byte, endpoints map[string]Endpoint) {
	d, root, ok := parse([]byte(fixture(b, "20.10", "list.json")))
	require.True(b, ok)
	var one string
	for c := range d.elements(root) {
		one = string(d.text(c)) // the last: web
	}
	d, root, _ = parse([]byte(one))
	networks, ok := d.get(root, "NetworkSettings", "Networks", "n1", "EndpointID")
	require.True(b, ok)
	id, _ := d.str(networks)
	endpoints = map[string]Endpoint{}
	var all []string
	for i := range uint16(100) {
		eid := fmt.Sprintf("%064x", i)
		all = append(all, strings.Replace(one, id, eid, 1))
		endpoints[eid] = endpoint([]portmap.Mapping{
			{Proto: portmap.TCP, HostPort: 8000 + i, HostPortEnd: 8000 + i, Port: 80},
			{Proto: portmap.UDP, HostPort: 30000 + 10*i, HostPortEnd: 30004 + 10*i, Port: 30000},
		}, portmap.ExposedPort{Proto: portmap.TCP, Port: 80}, portmap.ExposedPort{Proto: portmap.TCP, Port: 443})
	}
	return []byte("[" + strings.Join(all, ",") + "]\n"), endpoints
}

// The cost of the rewriter alone.
func BenchmarkEditList(b *testing.B) {
	list, endpoints := hundred(b)
	b.SetBytes(int64(len(list)))
	b.ReportAllocs()
	for b.Loop() {
		if editList(list, endpoints) == nil {
			b.Fatal("not edited")
		}
	}
}

// compare downloads a path straight from an engine and by the shim.
func compare(b *testing.B, engine http.HandlerFunc, endpoints map[string]Endpoint, path string) {
	r := newRig(b, engine)
	r.daemon.endpoints = endpoints
	for _, way := range []struct{ name, socket string }{{"straight", r.engine}, {"shim", r.api}} {
		b.Run(way.name, func(b *testing.B) {
			c := client(b, way.socket)
			b.ReportAllocs()
			for b.Loop() {
				resp, err := c.Get("http://docker" + path)
				require.NoError(b, err)
				n, err := io.Copy(io.Discard, resp.Body)
				require.NoError(b, err)
				b.SetBytes(n)
				resp.Body.Close()
			}
		})
	}
}

// docker ps with a hundred containers.
func BenchmarkList(b *testing.B) {
	list, endpoints := hundred(b)
	compare(b, always(200, string(list)), endpoints, "/v1.41/containers/json")
}

// docker save, in the engine's own chunks.
func BenchmarkDownload(b *testing.B) {
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 2048)
	compare(b, func(w http.ResponseWriter, _ *http.Request) {
		for range 2000 {
			_, _ = w.Write(chunk)
		}
	}, nil, "/images/x/get")
}
