package driver

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

func TestPortOptions(t *testing.T) {
	b := func(proto int, hostIP string, hostPort, hostPortEnd, port int) string {
		return fmt.Sprintf(`{"Proto":%d,"IP":"","Port":%d,"HostIP":%q,"HostPort":%d,"HostPortEnd":%d}`, proto, port, hostIP, hostPort, hostPortEnd)
	}
	tests := []struct {
		name, options  string
		bindings, told string
		err            string
	}{
		{"nothing", `{}`, "[]", "not told", ""},
		{"null", `null`, "[]", "not told", ""},
		{"empty", `{"portmap":[],"exposed":[]}`, "[]", "[]", ""},
		{"null lists", `{"portmap":null,"exposed":null}`, "[]", "[]", ""},
		{"others", `{"dns":["a",{"b":[[]]}],"portmap":[` + b(6, "", 80, 80, 8080) + `]}`, "[80:8080/tcp]", "not told", ""},
		{"no order", `{"portmap":[` + strings.Join([]string{b(17, "", 12, 12, 2), b(17, "", 10, 0, 0), b(17, "", 11, 11, 1), b(6, "", 13, 13, 3)}, ",") + `]}`,
			"[10-12:0-2/udp 13:3/tcp]", "not told", ""},
		{"a gap, and another difference", `{"portmap":[` + strings.Join([]string{b(17, "", 1, 1, 1), b(17, "", 3, 3, 3), b(17, "", 4, 4, 5), b(17, "", 2, 2, 2)}, ",") + `]}`,
			"[1-3:1-3/udp 4:5/udp]", "not told", ""},
		{"twice", `{"portmap":[` + b(6, "", 80, 80, 80) + "," + b(6, "", 80, 80, 80) + `]}`, "[80:80/tcp 80:80/tcp]", "not told", ""},
		{"host addresses", `{"portmap":[` + strings.Join([]string{b(6, "0.0.0.0", 80, 80, 80), b(6, "::", 80, 80, 80), b(6, "::ffff:0.0.0.0", 81, 81, 81)}, ",") + `]}`,
			"[0.0.0.0:80-81:80-81/tcp [::]:80:80/tcp]", "not told", ""},
		{"any, and any of some", `{"portmap":[` + b(6, "", 0, 0, 80) + "," + b(6, "", 8000, 8010, 80) + `]}`, "[80/tcp 8000-8010:80/tcp]", "not told", ""},
		{"the last port", `{"portmap":[` + b(6, "", 65535, 65535, 65535) + "," + b(6, "", 65534, 65534, 65534) + `]}`, "[65534-65535:65534-65535/tcp]", "not told", ""},
		{"the container's last port", `{"portmap":[` + b(6, "", 80, 80, 65535) + "," + b(6, "", 81, 81, 0) + `]}`, "[80:65535/tcp 81:0/tcp]", "not told", ""},
		{"exposed", `{"exposed":[{"Proto":17,"Port":5},{"Proto":6,"Port":6},{"Proto":17,"Port":4},{"Proto":17,"Port":5},{"Proto":6,"Port":65535},{"Proto":17,"Port":0}]}`,
			"[]", "[6/tcp 65535/tcp 0/udp 4-5/udp]", ""},
		{"no list", `{"exposed":"80"}`, "[]", "[]", "decode exposed ports: json: cannot unmarshal string"},
		{"a wrong one among others", `{"portmap":[` + b(6, "", 80, 80, 80) + `,{"Port":"80"},` + b(6, "", 81, 81, 81) + `]}`, "[80:80/tcp]", "not told", "decode port bindings: json: cannot unmarshal string"},
		{"a number that is none", `{"portmap":[` + b(6, "", 80, 80, 65536) + `]}`, "[]", "not told", "decode port bindings: json: cannot unmarshal number 65536"},
		{"a protocol that is none", `{"portmap":[` + b(1, "", 80, 80, 80) + `]}`, "[]", "not told", "protocol 1 of port 80 cannot be published"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			options := strings.NewReplacer(`"portmap"`, `"`+keyPortMap+`"`, `"exposed"`, `"`+keyExposed+`"`).Replace(tt.options)
			var r programRequest
			require.NoError(t, decodeStream(strings.NewReader(`{"NetworkID":"n","Options":`+options+`,"EndpointID":"e"}`), &r))
			assert.Equal(t, endpointRequest{"n", "e"}, r.endpointRequest)
			assert.Equal(t, tt.bindings, fmt.Sprint(r.Options.bindings))
			told := "not told"
			if r.Options.exposed != nil {
				told = fmt.Sprint(r.Options.exposed)
			}
			assert.Equal(t, tt.told, told)
			if tt.err == "" {
				require.NoError(t, r.Options.err)
			} else {
				require.ErrorContains(t, r.Options.err, tt.err)
			}
		})
	}
}

func TestStreamedRequests(t *testing.T) {
	for body, want := range map[string]string{
		``:                                "empty request",
		`   `:                             "empty request",
		`{`:                               "unexpected EOF",
		`{"NetworkID":"n"`:                "unexpected EOF",
		`{"Options":{"a":[1,`:             "unexpected EOF",
		`[]`:                              "want an object",
		`{"NetworkID":5}`:                 "cannot unmarshal number",
		`{"Options":[]}`:                  "want an object",
		`{} {}`:                           "there is more after its end",
		`{"a":01}`:                        "invalid character",
		`{"` + keyPortMap + `":[{"Port"}`: "",
	} {
		err := decodeStream(strings.NewReader(body), &programRequest{})
		require.ErrorContains(t, err, want, body)
	}
	var r createEndpointRequest
	body := `{"networkid":"n","ENDPOINTID":"e","Interface":{"Address":"10.1.0.2/24"},"Options":{"` + keyPortMap + `":[{"Port":"no binding"}],"` + keyExposed + `":[{"Proto":6,"Port":80}],"x":{}}}`
	require.NoError(t, decodeStream(strings.NewReader(body), &r))
	assert.Equal(t, endpointRequest{"n", "e"}, r.endpointRequest)
	assert.Equal(t, "10.1.0.2/24", r.Interface.Address)
	assert.Equal(t, "[80/tcp]", fmt.Sprint(r.Options.exposed))
	assert.Equal(t, []string{keyExposed, "x"}, r.Options.names)
	require.NoError(t, r.Options.err)
	var j joinRequest
	require.NoError(t, decodeStream(strings.NewReader(`{"SandboxKey":"/sb","Options":{"a":[1,2,{}]},"NetworkID":"n"}`), &j))
	assert.Equal(t, joinRequest{endpointRequest{"n", ""}, "/sb"}, j)
}

// FuzzProgram compares with encoding/json: the same requests are requests, and
// the same ports are asked for.
func FuzzProgram(f *testing.F) {
	f.Add(`{"NetworkID":"n","EndpointID":"e","Options":{"` + keyPortMap + `":[{"Proto":6,"Port":80,"HostPort":80},{"Proto":6,"Port":81,"HostPort":81,"HostPortEnd":81}],"` + keyExposed + `":[{"Proto":6,"Port":80}]}}`)
	f.Add(`{"NetworkID":"n","Options":{"` + keyPortMap + `":[{"Proto":17,"IP":"10.0.0.1","Port":65535,"HostIP":"::ffff:1.2.3.4","HostPort":8000,"HostPortEnd":8010}]}}`)
	f.Add(`{"Options":{"` + keyPortMap + `":[{"proto":6,"PORT":80,"hostport":8080},{"Proto":6,"Port":81,"Host_Port":81,"Host-IP":"::1"}]}}`)
	f.Add(`{"Options":{"` + keyPortMap + `":[null,{"Proto":null,"Port":80},{"Proto":6,"Proto":17,"Port":1e1,"HostIP":null,"x":"\ud800"}]}}`)
	f.Add(`{"Options":null} x`)
	f.Fuzz(func(t *testing.T, body string) {
		var r programRequest
		err := decodeStream(strings.NewReader(body), &r)
		var want struct {
			NetworkID, EndpointID string
			Options               map[string]json.RawMessage
		}
		if json.Unmarshal([]byte(body), &want) != nil {
			require.Error(t, err)
			return
		}
		if err != nil || strings.Count(body, keyPortMap) > 1 || strings.Count(body, keyExposed) > 1 {
			return // it is stricter: a struct that is null, as in "Options":[null]
		}
		require.Equal(t, want.NetworkID, r.NetworkID)
		require.Equal(t, want.EndpointID, r.EndpointID)
		var bindings []portmap.PortBinding
		if raw, ok := want.Options[keyPortMap]; !ok || json.Unmarshal(raw, &bindings) != nil || r.Options.err != nil {
			return
		}
		asked := map[string]int{}
		count := func(b portmap.PortBinding, n int) {
			b.IP, b.HostIP = b.HostIP.Unmap(), b.HostIP.Unmap()
			if b.HostPortEnd == 0 {
				b.HostPortEnd = b.HostPort
			}
			last := max(b.PortEnd, b.Port)
			for i := range int(last-b.Port) + 1 {
				one := b
				one.PortEnd = 0
				if last > b.Port {
					one.Port, one.HostPort, one.HostPortEnd = b.Port+uint16(i), b.HostPort+uint16(i), b.HostPort+uint16(i)
				}
				asked[one.String()] += n
			}
		}
		for _, b := range bindings {
			count(b, 1)
		}
		for _, b := range r.Options.bindings {
			count(b, -1)
		}
		for b, n := range asked {
			require.Zero(t, n, b)
		}
	})
}

// allPorts is the request of an engine for all ports of two protocols.
func allPorts() string {
	var bindings, exposed []string
	for _, proto := range []int{6, 17} {
		for _, p := range rand.Perm(65535) {
			bindings = append(bindings, fmt.Sprintf(`{"Proto":%d,"IP":"","Port":%d,"HostIP":"","HostPort":%d,"HostPortEnd":%d}`, proto, p+1, p+1, p+1))
			exposed = append(exposed, fmt.Sprintf(`{"Proto":%d,"Port":%d}`, proto, p+1))
		}
	}
	return fmt.Sprintf(`{"NetworkID":"n","EndpointID":"e","Options":{%q:[%s],%q:[%s]}}`,
		keyPortMap, strings.Join(bindings, ","), keyExposed, strings.Join(exposed, ","))
}

func TestAllPortsAreTwoRanges(t *testing.T) {
	var r programRequest
	require.NoError(t, decodeStream(strings.NewReader(allPorts()), &r))
	require.NoError(t, r.Options.err)
	assert.Equal(t, "[1-65535:1-65535/tcp 1-65535:1-65535/udp]", sorted(r.Options.bindings))
	assert.Equal(t, "[1-65535/tcp 1-65535/udp]", fmt.Sprint(r.Options.exposed))
}

func sorted(bs []portmap.PortBinding) string {
	if len(bs) == 2 && bs[0].Proto > bs[1].Proto {
		bs[0], bs[1] = bs[1], bs[0]
	}
	return fmt.Sprint(bs)
}

// BenchmarkDecodeAllPorts is what each of the three calls costs that an engine
// makes for a container with all ports of two protocols.
func BenchmarkDecodeAllPorts(b *testing.B) {
	body := allPorts()
	for name, request := range map[string]func() streamed{
		"CreateEndpoint": func() streamed { return new(createEndpointRequest) },
		"Join":           func() streamed { return new(joinRequest) },
		"Program":        func() streamed { return new(programRequest) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			var peak uint64
			for b.Loop() {
				req := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
				if err := decodeStream(req.Body, request()); err != nil {
					b.Fatal(err)
				}
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapSys)
			}
			b.ReportMetric(float64(peak)/(1<<20), "MiB-heap")
		})
	}
}
