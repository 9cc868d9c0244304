package driver

import (
	"bufio"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/internal/netnstest"
)

// recorded is a line of a recording: what an engine asked, and what a plugin
// that does nothing but record answered.
type recorded struct {
	Method   string          `json:"method"`
	Request  json.RawMessage `json:"request"`
	Response struct {
		Err                  string
		Gateway, GatewayIPv6 string
		Value                map[string][]object
	} `json:"response"`
}

func readRecording(t testing.TB, name string) []recorded {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	require.NoError(t, err)
	defer f.Close()
	var all []recorded
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r recorded
		require.NoError(t, json.Unmarshal(lines.Bytes(), &r))
		all = append(all, r)
	}
	require.NoError(t, lines.Err())
	return all
}

// TestRecordings plays what two engines sent through a whole scenario: two
// networks and the gateway moving between them, -P, an internal network, and
// port conflicts.
func TestRecordings(t *testing.T) {
	for _, tt := range []struct {
		file  string
		calls int
	}{
		{"engine-20.10.24.jsonl", 64},
		{"engine-29.jsonl", 61},
	} {
		t.Run(tt.file, func(t *testing.T) {
			r := newRig(t)
			p := &player{rig: r, t: t, container: netnstest.NewHost(t), internal: map[string]bool{}, ports: map[string]bool{}}
			lines := readRecording(t, tt.file)
			for _, line := range lines {
				p.play(line)
			}
			require.Len(t, lines, tt.calls)
			assert.True(t, p.moved, "the gateway moved")
			r.nothingLeft()
		})
	}
}

type player struct {
	*rig
	t         *testing.T
	container *netnstest.Host
	internal  map[string]bool // networks
	ports     map[string]bool // endpoints with published ports
	moved     bool
}

func (p *player) play(line recorded) {
	var req struct {
		NetworkID, EndpointID string
		Interface             struct{ Address string }
		Options               object
	}
	require.NoError(p.t, json.Unmarshal(line.Request, &req))
	method := strings.TrimPrefix(line.Method, "NetworkDriver.")
	switch method {
	case "Plugin.Activate":
		_, answer := p.post("/Plugin.Activate", "")
		require.Equal(p.t, object{"Implements": []any{"NetworkDriver"}}, answer)
	case "GetCapabilities":
		require.Equal(p.t, object{"Scope": "local", "ConnectivityScope": "local", "GwAllocChecker": true}, p.ok(method, ""))
	case "CreateNetwork":
		p.createNetwork(line.Request, req.Options)
		p.internal[req.NetworkID] = req.Options[keyInternal] == true
	case "CreateEndpoint":
		mac := addrMAC(netip.MustParsePrefix(req.Interface.Address).Addr()).String()
		require.Equal(p.t, object{"Interface": object{"MacAddress": mac}}, p.ok(method, line.Request))
	case "Join":
		p.joined(line, req.NetworkID)
	case "ProgramExternalConnectivity":
		p.program(line, req.NetworkID, req.EndpointID)
	case "EndpointOperInfo":
		p.info(line, req.EndpointID)
	default:
		p.ok(method, line.Request)
		delete(p.ports, req.EndpointID)
	}
}

// createNetwork: the recording has an option that Portolan has not.
func (p *player) createNetwork(request json.RawMessage, options object) {
	if _, ok := options[keyGeneric].(object)["portolan.publish"]; ok {
		assert.Contains(p.t, p.refused("CreateNetwork", request), `option "portolan.publish" is not known`)
		request = json.RawMessage(strings.Replace(string(request), `,"portolan.publish":"proxy"`, "", 1))
	}
	p.ok("CreateNetwork", request)
}

// joined moves the interface away as the engine does.
func (p *player) joined(line recorded, network string) {
	answer := p.ok("Join", line.Request)
	name := answer["InterfaceName"].(object)
	require.Equal(p.t, "eth", name["DstPrefix"])
	require.NoError(p.t, netlink.LinkSetNsFd(linkOf(p.t, name["SrcName"].(string)), p.container.FD()))
	if p.internal[network] {
		require.Equal(p.t, true, answer["DisableGatewayService"])
		require.Empty(p.t, answer["Gateway"])
		return
	}
	require.Equal(p.t, false, answer["DisableGatewayService"])
	require.Equal(p.t, line.Response.Gateway, answer["Gateway"])
	require.Equal(p.t, line.Response.GatewayIPv6, answer["GatewayIPv6"])
	require.Empty(p.t, answer["StaticRoutes"])
}

func (p *player) program(line recorded, network, endpoint string) {
	if line.Response.Err != "" {
		p.pub.fail = errors.New(line.Response.Err)
		assert.Contains(p.t, p.refused("ProgramExternalConnectivity", line.Request), line.Response.Err)
		p.pub.fail = nil
		ep, _ := p.store.Endpoint(endpoint)
		require.Empty(p.t, ep.Mappings)
		require.False(p.t, ep.Gateway)
		return
	}
	ep, _ := p.store.Endpoint(endpoint)
	before := p.pub.heldBy[ep.Sandbox]
	p.ok("ProgramExternalConnectivity", line.Request)
	if p.internal[network] {
		require.Empty(p.t, p.pub.heldBy[ep.Sandbox])
		return
	}
	after := p.pub.heldBy[ep.Sandbox]
	require.NotEmpty(p.t, after)
	if before != nil {
		p.moved = true
		require.ElementsMatch(p.t, before, after, "host ports stay the same")
	}
	p.ports[endpoint] = true
	pubs := p.mapper.Publications()
	require.Len(p.t, pubs, 1)
	require.Equal(p.t, endpoint, pubs[0].Endpoint)
}

func (p *player) info(line recorded, endpoint string) {
	value := p.ok("EndpointOperInfo", line.Request)["Value"].(object)
	require.Len(p.t, value, 2)
	require.IsType(p.t, []any{}, value[keyExposed])
	bindings := value[keyPortMap].([]any)
	if !p.ports[endpoint] {
		require.Empty(p.t, bindings)
		return
	}
	require.GreaterOrEqual(p.t, len(bindings), len(line.Response.Value[keyPortMap]))
	require.Len(p.t, value[keyExposed], len(line.Response.Value[keyExposed]))
	for _, b := range bindings {
		require.NotZero(p.t, b.(object)["HostPort"])
		require.Equal(p.t, b.(object)["HostPort"], b.(object)["HostPortEnd"])
		require.NotEmpty(p.t, b.(object)["IP"])
		require.NotEmpty(p.t, b.(object)["HostIP"])
	}
}

func TestStatusOfErrors(t *testing.T) {
	r := newRig(t)
	status, answer := r.post("/NetworkDriver.NoSuchMethod", "{}")
	assert.Equal(t, http.StatusNotFound, status)
	assert.Equal(t, "/NetworkDriver.NoSuchMethod is not a method of this plugin", answer["Err"])
}
