package driver

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/store"
)

// fuzzPaths are all that the socket answers: the protocol's methods, and our own
// beside them.
var fuzzPaths = slices.Concat(withRequest, []string{
	"/Plugin.Activate", "/NetworkDriver.GetCapabilities", "/Portolan.Version", "/Portolan.List", "/Portolan.Status", "/Portolan.Cleanup",
})

// everything is what a daemon remembers.
type everything struct {
	networks  []store.Network
	endpoints []store.Endpoint
	sysctls   []store.Sysctl
	holders   int
}

func (r *rig) everything() everything {
	return everything{r.store.Networks(), r.store.Endpoints(), r.store.Sysctls(), len(r.pub.heldBy)}
}

// standing makes the network and the endpoint that a request may be about.
func (r *rig) standing() {
	r.ok("CreateNetwork", networkOf(1, true, nil))
	r.run(1, 2, 2, true, "/sb")
	r.ok("ProgramExternalConnectivity", programOf(1, 2, udp("", 5353, 53)))
}

// FuzzCalls sends any body to any path of a daemon with a network and a
// container on it. Nothing panics, the answer is one that an engine can read, and
// what was no request has changed nothing.
func FuzzCalls(f *testing.F) {
	for _, seed := range fuzzSeeds(f) {
		f.Add(seed.path, seed.body)
	}
	r := newRig(f)
	r.standing()
	before := r.everything()
	f.Fuzz(func(t *testing.T, path uint8, body []byte) {
		r.t = t
		url := fuzzPaths[int(path)%len(fuzzPaths)]
		w := httptest.NewRecorder()
		r.h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, url, strings.NewReader(string(body))))
		var answer map[string]any
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &answer), "%q", w.Body)
		text, _ := answer["Err"].(string)
		require.NotContains(t, text, "internal error")
		require.NotContains(t, text, "\n")
		after := r.everything()
		switch w.Code {
		case http.StatusOK:
		case http.StatusBadRequest:
			require.NotEmpty(t, text)
			require.Equal(t, before, after)
		default:
			require.Fail(t, "status", "%d %s", w.Code, w.Body)
		}
		if text != "" && strings.HasPrefix(url, "/NetworkDriver.Create") {
			require.Equal(t, before, after, "what failed has left something")
		}
		if reflect.DeepEqual(before, after) {
			return
		}
		if _, answer := r.post("/Portolan.Cleanup", ""); answer["Err"] != nil {
			require.Fail(t, "clean up", "%v", answer)
		}
		clear(r.pub.heldBy) // the real one's sandboxes are released one by one
		r.nothingLeft()
		r.standing()
		before = r.everything()
	})
}

type fuzzSeed struct {
	path uint8
	body []byte
}

// fuzzSeeds are what two engines have sent, told of the network and the endpoint
// that stand, and some more of what changes something.
func fuzzSeeds(f *testing.F) (seeds []fuzzSeed) {
	add := func(method string, body []byte) {
		i := slices.Index(fuzzPaths, method)
		require.GreaterOrEqual(f, i, 0, method)
		seeds = append(seeds, fuzzSeed{uint8(i), body})
	}
	known := map[string]bool{}
	for _, name := range []string{"engine-20.10.24.jsonl", "engine-29.jsonl"} {
		for _, line := range readRecording(f, name) {
			var ids struct{ NetworkID, EndpointID string }
			require.NoError(f, json.Unmarshal(line.Request, &ids))
			text := string(line.Request)
			if ids.NetworkID != "" && line.Method != "NetworkDriver.CreateNetwork" {
				text = strings.ReplaceAll(text, ids.NetworkID, id(1))
			}
			if ids.EndpointID != "" && line.Method != "NetworkDriver.CreateEndpoint" {
				text = strings.ReplaceAll(text, ids.EndpointID, id(2))
			}
			// The same twice has nothing to teach.
			if key := line.Method + text; !known[key] {
				known[key] = true
				add("/"+line.Method, []byte(text))
			}
		}
	}
	for _, more := range []struct {
		method string
		body   any
	}{
		{"/NetworkDriver.CreateNetwork", networkOf(3, true, nil)},
		{"/NetworkDriver.CreateNetwork", networkOf(3, false, object{keyInternal: true, "com.docker.network.bridge.gateway_mode_ipv4": "isolated"})},
		{"/NetworkDriver.CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(4), "Interface": object{"Address": "10.1.0.4/24", "AddressIPv6": "fd00:1::4/64"}}},
		{"/NetworkDriver.ProgramExternalConnectivity", programOf(1, 2, udp("", 0, 53), udp("127.0.0.1", 7000, 7000), udp("::1", 7000, 7000))},
		{"/Portolan.SetOwner", object{"EndpointID": id(2), "ContainerID": "c", "ContainerName": "web"}},
		{"/Portolan.Cleanup", nil},
		{"/Portolan.List", object{}},
	} {
		body, err := json.Marshal(more.body)
		require.NoError(f, err)
		add(more.method, body)
	}
	return seeds
}

// FuzzOptions gives a network any option. What is taken can be written to the
// store and read again, and stands in no path and no rule as something else.
func FuzzOptions(f *testing.F) {
	for _, o := range networkOptions {
		for _, value := range []string{"true", "pl0", "eth0:eth1", "10.0.0.1", "::1", "1500", "routed", "isolated", ""} {
			f.Add(o.name, value, false)
		}
	}
	f.Add("portolan.nothing", "x", true)
	f.Fuzz(func(t *testing.T, name, value string, internal bool) {
		generic, err := json.Marshal(map[string]string{name: value})
		require.NoError(t, err)
		opts := rawOptions{keyGeneric: generic}
		if internal {
			opts[keyInternal] = json.RawMessage("true")
		}
		n, err := parseOptions(opts)
		if err != nil {
			return
		}
		require.Contains(t, OptionNames(), name)
		require.Equal(t, internal, n.Internal)
		for _, iface := range append(slices.Clone(n.Trusted), n.Bridge, n.IfacePrefix) {
			require.LessOrEqual(t, len(iface), 15)
			require.False(t, strings.ContainsAny(iface, "/ \n\x00"), "%q", iface)
		}
		text, err := json.Marshal(n)
		require.NoError(t, err)
		var again store.Network
		require.NoError(t, json.Unmarshal(text, &again))
		require.True(t, sameNetwork(n, again), "%s", text)
	})
}

// FuzzPortMode reads any message as the kernel's of a bridge port.
func FuzzPortMode(f *testing.F) {
	header := make([]byte, unix.SizeofIfInfomsg)
	header[0], header[4] = unix.AF_BRIDGE, 9
	flags := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	flags.AddRtAttr(nl.IFLA_BRPORT_MODE, []byte{1})
	flags.AddRtAttr(nl.IFLA_BRPORT_ISOLATED, []byte{1})
	whole := slices.Concat(header, flags.Serialize())
	index, mode, err := parsePortMode(whole)
	require.NoError(f, err)
	require.Equal(f, 9, index)
	require.Equal(f, portMode{hairpin: true, isolated: true}, mode)
	f.Add(whole)
	f.Add(header)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		_, mode, err := parsePortMode(msg)
		if len(msg) < unix.SizeofIfInfomsg {
			require.Error(t, err)
			require.Zero(t, mode)
		}
	})
}
