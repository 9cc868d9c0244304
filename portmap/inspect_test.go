package portmap

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPorts(t *testing.T) {
	both := Target{IPv4: addr("172.20.0.2"), IPv6: addr("fd20::2")}
	only4, only6, remote4 := both, both, both
	only4.IPv6, only6.IPv4, remote4.IPv6 = Mapping{}.HostIP, Mapping{}.HostIP, Mapping{}.HostIP
	remote4.ProxyRemote = true
	tests := []struct {
		name    string
		target  Target
		ms      []Mapping
		exposed []ExposedPort
		want    string
	}{
		{"nothing", both, nil, nil, `{}`},
		{"exposed", both, nil, []ExposedPort{{Proto: UDP, Port: 53}}, `{"53/udp": null}`},
		{"both families", both, []Mapping{one(TCP, "", 8080, 80)}, []ExposedPort{{Proto: TCP, Port: 80}, {Proto: TCP, Port: 443}},
			`{"80/tcp": [{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}], "443/tcp": null}`},
		{"IPv4 alone", only4, []Mapping{one(UDP, "", 53, 53)}, nil, `{"53/udp": [{"HostIp":"0.0.0.0","HostPort":"53"}]}`},
		{"IPv6 alone", only6, []Mapping{one(UDP, "", 53, 53)}, nil, `{"53/udp": [{"HostIp":"::","HostPort":"53"}]}`},
		{"IPv4 alone, IPv6 clients let in", remote4, []Mapping{one(UDP, "", 53, 53)}, nil,
			`{"53/udp": [{"HostIp":"0.0.0.0","HostPort":"53"},{"HostIp":"::","HostPort":"53"}]}`},
		{"host addresses", only4, []Mapping{one(SCTP, "127.0.0.1", 53, 53), one(SCTP, "::1", 54, 53)}, nil,
			`{"53/sctp": [{"HostIp":"127.0.0.1","HostPort":"53"},{"HostIp":"::1","HostPort":"54"}]}`},
		{"a range", only4, []Mapping{ports(TCP, "", 8000, 8002, 80)}, nil,
			`{"80/tcp": [{"HostIp":"0.0.0.0","HostPort":"8000"}], "81/tcp": [{"HostIp":"0.0.0.0","HostPort":"8001"}], "82/tcp": [{"HostIp":"0.0.0.0","HostPort":"8002"}]}`},
		{"the last port", only4, []Mapping{ports(TCP, "", 65534, 65535, 65534)}, nil,
			`{"65534/tcp": [{"HostIp":"0.0.0.0","HostPort":"65534"}], "65535/tcp": [{"HostIp":"0.0.0.0","HostPort":"65535"}]}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := json.Marshal(Ports(Publication{tt.target, tt.ms}, tt.exposed))
			require.NoError(t, err)
			require.JSONEq(t, tt.want, string(out))
		})
	}
}

func TestPortMapping(t *testing.T) {
	tests := []struct {
		name string
		ms   []Mapping
		want string
	}{
		{"nothing", nil, `{"Tcp": {}, "Udp": {}}`},
		{"one of each", []Mapping{one(TCP, "", 8080, 80), one(UDP, "", 53530, 53)}, `{"Tcp": {"80": "8080"}, "Udp": {"53": "53530"}}`},
		{"sctp", []Mapping{one(SCTP, "", 5000, 5001)}, `{"Tcp": {}, "Udp": {}, "Sctp": {"5001": "5000"}}`},
		{"a range", []Mapping{ports(UDP, "", 8000, 8001, 80)}, `{"Tcp": {}, "Udp": {"80": "8000", "81": "8001"}}`},
		{"the lowest of several", []Mapping{one(TCP, "", 9000, 80), one(TCP, "127.0.0.1", 8000, 80), one(TCP, "", 8500, 80)}, `{"Tcp": {"80": "8000"}, "Udp": {}}`},
		{"by number, not by digits", []Mapping{one(TCP, "", 900, 80), one(TCP, "", 1000, 80)}, `{"Tcp": {"80": "900"}, "Udp": {}}`},
		{"tcp and udp apart", []Mapping{one(TCP, "", 2, 53), one(UDP, "", 1, 53)}, `{"Tcp": {"53": "2"}, "Udp": {"53": "1"}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := json.Marshal(PortMapping(tt.ms))
			require.NoError(t, err)
			require.JSONEq(t, tt.want, string(out))
		})
	}
}

func TestPublished(t *testing.T) {
	v4, v6 := addr("172.20.0.2"), addr("fd20::2")
	all := Mapping{Proto: TCP, HostPort: 8080, HostPortEnd: 8080, Port: 80}
	one := Mapping{Proto: TCP, HostIP: addr("192.0.2.1"), HostPort: 8081, HostPortEnd: 8081, Port: 80}
	for _, tt := range []struct {
		target Target
		want   []Mapping
	}{
		{Target{IPv4: v4, IPv6: v6}, []Mapping{all, one}},
		{Target{IPv4: v4, IPv6: v6, Routed4: true}, []Mapping{all}},
		{Target{IPv4: v4, IPv6: v6, Routed4: true, Routed6: true}, nil},
	} {
		require.Equal(t, tt.want, Publication{tt.target, []Mapping{all, one}}.Published())
	}
}
