package driver

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

const dockerBridge = "com.docker.network.bridge."

// optionsOf makes options of an object, as they come over the wire.
func optionsOf(t *testing.T, o object) rawOptions {
	t.Helper()
	b, err := json.Marshal(o)
	require.NoError(t, err)
	var opts rawOptions
	require.NoError(t, json.Unmarshal(b, &opts))
	return opts
}

func TestOptions(t *testing.T) {
	generic := func(name string, value any) object { return object{keyGeneric: object{name: value}} }
	isolated := object{keyInternal: true, keyGeneric: object{dockerBridge + "gateway_mode_ipv4": "isolated"}}
	tests := []struct {
		name string
		in   object
		want func(*store.Network) // what differs from a network without options
		err  string               // or what the error says
	}{
		{"nothing", object{}, nil, ""},
		{"no map", object{keyGeneric: nil}, nil, ""},
		{"an empty map", object{keyGeneric: object{}}, nil, ""},
		{"an unknown key of the engine's", object{"com.docker.network.new_in_31": object{}}, nil, ""},
		{"bridge name", generic(dockerBridge+"name", "br.lan-1"), func(n *store.Network) { n.Bridge = "br.lan-1" }, ""},
		{"bridge name with a plus", generic(dockerBridge+"name", "br+lan"), func(n *store.Network) { n.Bridge = "br+lan" }, ""},
		{"iptables pattern as bridge name", generic(dockerBridge+"name", "e+"), nil, "not a name that an interface can have"},
		{"iptables option as bridge name", generic(dockerBridge+"name", "-j"), nil, "not a name that an interface can have"},
		{"iptables negation as bridge name", generic(dockerBridge+"name", "!"), nil, "not a name that an interface can have"},
		{"quotation as bridge name", generic(dockerBridge+"name", `br"`), nil, "not a name that an interface can have"},
		{"iptables pattern among the trusted", generic(dockerBridge+"trusted_host_interfaces", "lan0:e+"), nil, "not a name that an interface can have"},
		{"no masquerade", generic(dockerBridge+"enable_ip_masquerade", "false"), func(n *store.Network) { n.NoMasquerade = true }, ""},
		{"masquerade", generic(dockerBridge+"enable_ip_masquerade", "1"), nil, ""},
		{"a bool that is one", generic(dockerBridge+"enable_ip_masquerade", false), func(n *store.Network) { n.NoMasquerade = true }, ""},
		{"no icc", generic(dockerBridge+"enable_icc", "False"), func(n *store.Network) { n.NoICC = true }, ""},
		{"host binding", generic(dockerBridge+"host_binding_ipv4", "192.0.2.1"), func(n *store.Network) { n.HostBinding4 = netip.MustParseAddr("192.0.2.1") }, ""},
		{"host binding to all", generic(dockerBridge+"host_binding_ipv4", "0.0.0.0"), nil, ""},
		{"routed", generic(dockerBridge+"gateway_mode_ipv6", "routed"), func(n *store.Network) { n.Mode6 = portmap.ModeRouted }, ""},
		{"unprotected", generic(dockerBridge+"gateway_mode_ipv4", "nat-unprotected"), func(n *store.Network) { n.Mode4 = portmap.ModeNATUnprotected }, ""},
		{"isolated", isolated, func(n *store.Network) { n.Internal, n.Mode4 = true, portmap.ModeIsolated }, ""},
		{"inhibit", generic(dockerBridge+"inhibit_ipv4", "true"), func(n *store.Network) { n.InhibitIPv4 = true }, ""},
		{"trusted", generic(dockerBridge+"trusted_host_interfaces", "eth0:wg0"), func(n *store.Network) { n.Trusted = []string{"eth0", "wg0"} }, ""},
		{"mtu", generic("com.docker.network.driver.mtu", "1400"), func(n *store.Network) { n.MTU = 1400 }, ""},
		{"mtu as a number", generic("com.docker.network.driver.mtu", 1400), func(n *store.Network) { n.MTU = 1400 }, ""},
		{"prefix", generic("com.docker.network.container_iface_prefix", "lan"), func(n *store.Network) { n.IfacePrefix = "lan" }, ""},
		{"snat", generic("com.docker.network.host_ipv4", "192.0.2.1"), func(n *store.Network) { n.SNAT4 = netip.MustParseAddr("192.0.2.1") }, ""},
		{"snat of IPv6", generic("com.docker.network.host_ipv6", "2001:db8::1"), func(n *store.Network) { n.SNAT6 = netip.MustParseAddr("2001:db8::1") }, ""},
		{"proxy remote", generic("portolan.proxy_remote", "true"), func(n *store.Network) { n.ProxyRemote = true }, ""},
		{"max flows", generic("portolan.max_flows", "1000"), func(n *store.Network) { n.MaxFlows = 1000 }, ""},
		{"no limit of flows", generic("portolan.max_flows", 0), nil, ""},
		{"internal", object{keyInternal: true}, func(n *store.Network) { n.Internal = true }, ""},

		{"unknown", generic("parent", "eth0"), nil, `option "parent" is not known (known are: com.docker.network.bridge.name, `},
		{"mistyped", generic(dockerBridge+"enable_iic", "false"), nil, "did you mean com.docker.network.bridge.enable_icc?"},
		{"last part only", generic("mtu", "1400"), nil, "did you mean com.docker.network.driver.mtu?"},
		{"unknown of ours", generic("portolan.proxy-remote", "true"), nil, "did you mean portolan.proxy_remote?"},
		{"far from all", generic("portolan.publish", "proxy"), nil, `option "portolan.publish" is not known (known are`},
		{"ours elsewhere", object{"portolan.proxy_remote": "true"}, nil, `option "portolan.proxy_remote" is not known here`},
		{"default bridge", generic(dockerBridge+"default_bridge", "false"), nil, "is for Docker's own bridge driver only"},
		{"not a bool", generic(dockerBridge+"enable_icc", "off"), nil, "option com.docker.network.bridge.enable_icc=off: neither true nor false"},
		{"not a string", generic(dockerBridge+"enable_icc", []string{"a"}), nil, "is not a string"},
		{"not a map", object{keyGeneric: "x"}, nil, "decode option com.docker.network.generic"},
		{"internal is not a bool", object{keyInternal: "maybe"}, nil, "neither true nor false"},
		{"name too long", generic(dockerBridge+"name", "a234567890123456"), nil, "1 to 15 characters"},
		{"name empty", generic(dockerBridge+"name", ""), nil, "1 to 15 characters"},
		{"name with slash", generic(dockerBridge+"name", "a/b"), nil, "not a name that an interface can have"},
		{"name is a folder", generic(dockerBridge+"name", "all"), nil, "not a name that an interface can have"},
		{"name is a pattern", generic(dockerBridge+"name", "br%d"), nil, "not a name that an interface can have"},
		{"name not ASCII", generic(dockerBridge+"name", "brü"), nil, "plain ASCII"},
		{"mtu too small", generic("com.docker.network.driver.mtu", "67"), nil, "68 to 65535"},
		{"mtu too large", generic("com.docker.network.driver.mtu", "65536"), nil, "68 to 65535"},
		{"mtu with unit", generic("com.docker.network.driver.mtu", "1400b"), nil, "68 to 65535"},
		{"too many flows", generic("portolan.max_flows", "10001"), nil, "a number of flows from 0 (no limit) to 10000"},
		{"flows below zero", generic("portolan.max_flows", "-1"), nil, "a number of flows from 0"},
		{"prefix too long", generic("com.docker.network.container_iface_prefix", "a23456789012"), nil, "at most 11 characters"},
		{"prefix empty", generic("com.docker.network.container_iface_prefix", ""), nil, "1 to 15 characters"},
		{"host binding of IPv6", generic(dockerBridge+"host_binding_ipv4", "::1"), nil, "not an IPv4 address"},
		{"snat of the other family", generic("com.docker.network.host_ipv6", "192.0.2.1"), nil, "not an IPv6 address"},
		{"snat with zone", generic("com.docker.network.host_ipv6", "fe80::1%eth0"), nil, "not an IPv6 address"},
		{"mode", generic(dockerBridge+"gateway_mode_ipv4", "bridge"), nil, `no gateway mode; there are ["nat" "nat-unprotected" "routed" "isolated"]`},
		{"isolated without internal", generic(dockerBridge+"gateway_mode_ipv6", "isolated"), nil, "add --internal"},
		{"trusted with a gap", generic(dockerBridge+"trusted_host_interfaces", "eth0::eth1"), nil, `interface ""`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseOptions(optionsOf(t, tt.in))
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				assert.NotContains(t, err.Error(), "\n")
				return
			}
			require.NoError(t, err)
			want := store.Network{IfacePrefix: "eth"}
			if tt.want != nil {
				tt.want(&want)
			}
			assert.Equal(t, want, got)
		})
	}
}

// Every known option is in the table above, and in every list of known ones.
func TestKnownOptions(t *testing.T) {
	require.Len(t, networkOptions, 14)
	for _, o := range networkOptions {
		assert.Contains(t, knownOptions(), o.name)
		assert.Empty(t, nearest("completely.different", []string{o.name}))
		assert.Equal(t, o.name, nearest(o.name[:len(o.name)-1], []string{o.name}))
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"mtu", "mut", 2}, {"same", "same", 0}} {
		assert.Equal(t, tt.want, distance(tt.a, tt.b), "%q %q", tt.a, tt.b)
	}
}

func TestGwAllocCheck(t *testing.T) {
	r := newRig(t)
	check := func(o object) object { return r.ok("GwAllocCheck", object{"Options": o}) }
	assert.Equal(t, object{"SkipIPv4": false, "SkipIPv6": false}, check(object{}))
	assert.Equal(t, object{"SkipIPv4": true, "SkipIPv6": false},
		check(object{keyInternal: true, keyGeneric: object{dockerBridge + "gateway_mode_ipv4": "isolated"}}))
	assert.Equal(t, object{"SkipIPv4": false, "SkipIPv6": true},
		check(object{keyInternal: true, keyGeneric: object{dockerBridge + "gateway_mode_ipv6": "isolated"}}))
	inhibit := object{dockerBridge + "inhibit_ipv4": "true"}
	assert.Equal(t, object{"SkipIPv4": false, "SkipIPv6": false}, check(object{keyGeneric: inhibit}))
	assert.Equal(t, object{"SkipIPv4": true, "SkipIPv6": false}, check(object{keyInternal: true, keyGeneric: inhibit}))
	assert.Contains(t, r.refused("GwAllocCheck", object{"Options": object{keyGeneric: object{"mtu": "1"}}}), "is not known")
}

func TestPools(t *testing.T) {
	pool := func(cidr, gateway string) object { return object{"Pool": cidr, "Gateway": gateway} }
	v4, v6 := pool("10.1.0.0/24", "10.1.0.1/24"), pool("fd00:1::/64", "fd00:1::1/64")
	tests := []struct {
		name string
		in   object // parts of the request
		err  string
	}{
		{"IPv4", object{"IPv4Data": []object{v4}}, ""},
		{"both", object{"IPv4Data": []object{v4}, "IPv6Data": []object{v6}}, ""},
		{"IPv6 only", object{"IPv6Data": []object{v6}}, ""},
		{"gateway without length", object{"IPv4Data": []object{pool("10.1.0.0/24", "10.1.0.1")}}, ""},
		{"IPv4 off", object{"IPv4Data": []object{v4}, "Options": object{keyEnableIPv4: false}}, "no address pool at all"},
		{"neither", object{}, "no address pool at all"},
		{"IPv6 on without pool", object{"IPv4Data": []object{v4}, "Options": object{keyEnableIPv6: true}}, "IPv6 without an address pool"},
		{"two pools", object{"IPv4Data": []object{v4, pool("10.2.0.0/24", "")}}, "2 IPv4 pools"},
		{"not a CIDR", object{"IPv4Data": []object{pool("10.1.0.0", "")}}, `pool "10.1.0.0" is not an address range`},
		{"too long", object{"IPv4Data": []object{pool("10.1.0.0/33", "")}}, "is not an address range"},
		{"family", object{"IPv4Data": []object{v6}}, "is of the other family"},
		{"family of IPv6", object{"IPv6Data": []object{v4}}, "is of the other family"},
		{"loopback", object{"IPv4Data": []object{pool("127.1.0.0/16", "127.1.0.1")}}, "is not for containers"},
		{"multicast", object{"IPv6Data": []object{pool("ff05::/64", "ff05::1")}}, "is not for containers"},
		{"link-local", object{"IPv6Data": []object{pool("fe80::/64", "fe80::1")}}, "is not for containers"},
		{"everything", object{"IPv4Data": []object{pool("0.0.0.0/0", "10.0.0.1")}}, "is not for containers"},
		{"gateway outside", object{"IPv4Data": []object{pool("10.1.0.0/24", "10.2.0.1/24")}}, "gateway 10.2.0.1 is not in the pool 10.1.0.0/24"},
		{"gateway garbage", object{"IPv4Data": []object{pool("10.1.0.0/24", "x")}}, `gateway "x" is not an address`},
		{"no gateway", object{"IPv4Data": []object{pool("10.1.0.0/24", "")}}, "has no gateway"},
		{"no gateway, internal", object{"IPv4Data": []object{pool("10.1.0.0/24", "")}, "Options": object{keyInternal: true}}, ""},
		{"auxiliary gateway outside", object{"IPv4Data": []object{{"Pool": "10.1.0.0/24", "Gateway": "10.1.0.1",
			"AuxAddresses": object{"DefaultGatewayIPv4": "10.9.0.1/24"}}}}, "DefaultGatewayIPv4 10.9.0.1 is not in the pool"},
		{"MTU too small for IPv6", object{"IPv6Data": []object{v6}, "Options": object{keyGeneric: object{"com.docker.network.driver.mtu": "1279"}}}, "too small for IPv6"},
		{"bad ID", object{"NetworkID": "ABC", "IPv4Data": []object{v4}}, `"ABC" is not a network ID`},
		{"Swarm's ID", object{"NetworkID": "tlsvqr3sypmh5dz2e9xv8ynma", "IPv4Data": []object{v4}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, ok := tt.in["NetworkID"]; !ok {
				tt.in["NetworkID"] = id(1)
			}
			b, err := json.Marshal(tt.in)
			require.NoError(t, err)
			var req createNetworkRequest
			require.NoError(t, decode(strings.NewReader(string(b)), &req))
			_, err = parseNetwork(req)
			if tt.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tt.err)
		})
	}
}

func TestNextHop(t *testing.T) {
	for _, tt := range []struct{ gateway, aux, want string }{
		{"10.1.0.1", "", "10.1.0.1"},
		{"10.1.0.1", "10.1.0.254/24", "10.1.0.254"},
		{"", "10.1.0.254", "10.1.0.254"},
		{"10.1.0.0", "", "10.1.0.0"}, // the pool's own first address
	} {
		var req createNetworkRequest
		body, err := json.Marshal(object{"NetworkID": id(1), "IPv4Data": []object{{
			"Pool": "10.1.0.0/24", "Gateway": tt.gateway, "AuxAddresses": object{"DefaultGatewayIPv4": tt.aux, "printer": "10.1.0.9"},
		}}})
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(body, &req))
		n, err := parseNetwork(req)
		require.NoError(t, err)
		assert.Equal(t, tt.want, n.NextHop4.String())
	}
}
