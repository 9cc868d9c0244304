package shim

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/portolan/portolan/portmap"
)

// endpoint publishes mappings in the family of its address, or in both.
func endpoint(mappings []portmap.Mapping, exposed ...portmap.ExposedPort) Endpoint {
	return Endpoint{
		Publication: portmap.Publication{
			Target:   portmap.Target{IPv4: netip.MustParseAddr("172.20.0.2"), IPv6: netip.MustParseAddr("fd20::2")},
			Mappings: mappings,
		},
		Exposed: exposed,
	}
}

func TestMerge(t *testing.T) {
	both := endpoint([]portmap.Mapping{
		{Proto: portmap.UDP, HostPort: 5000, HostPortEnd: 5001, Port: 53},
		{Proto: portmap.TCP, HostIP: netip.MustParseAddr("192.0.2.10"), HostPort: 81, HostPortEnd: 81, Port: 80},
		{Proto: portmap.TCP, HostIP: netip.MustParseAddr("192.0.2.9"), HostPort: 90, HostPortEnd: 90, Port: 80},
		{Proto: portmap.TCP, HostIP: netip.MustParseAddr("192.0.2.9"), HostPort: 82, HostPortEnd: 82, Port: 80},
	}, portmap.ExposedPort{Proto: portmap.TCP, Port: 80}, portmap.ExposedPort{Proto: portmap.TCP, Port: 443}, portmap.ExposedPort{Proto: portmap.TCP, Port: 443})
	tests := []struct{ name, engine, want string }{
		{
			"sorted, and published ports are not exposed as well", `[]`,
			`{"IP":"0.0.0.0","PrivatePort":53,"PublicPort":5000,"Type":"udp"}
{"IP":"::","PrivatePort":53,"PublicPort":5000,"Type":"udp"}
{"IP":"0.0.0.0","PrivatePort":54,"PublicPort":5001,"Type":"udp"}
{"IP":"::","PrivatePort":54,"PublicPort":5001,"Type":"udp"}
{"IP":"192.0.2.9","PrivatePort":80,"PublicPort":82,"Type":"tcp"}
{"IP":"192.0.2.9","PrivatePort":80,"PublicPort":90,"Type":"tcp"}
{"IP":"192.0.2.10","PrivatePort":80,"PublicPort":81,"Type":"tcp"}
{"PrivatePort":443,"Type":"tcp"}`,
		}, {
			"the engine's stay as they are, and are not there twice",
			`[{"IP":"","PrivatePort":443,"Type":"tcp"},{"PublicPort":5001,"PrivatePort":54,"Type":"udp","IP":"::"},{"PrivatePort":80,"Type":"tcp"},{"IP":"192.0.2.9","PrivatePort":80,"PublicPort":7,"Type":"tcp"},{"PrivatePort":9,"Type":"new","x":1.0}]`,
			`{"PrivatePort":9,"Type":"new","x":1.0}
{"IP":"0.0.0.0","PrivatePort":53,"PublicPort":5000,"Type":"udp"}
{"IP":"::","PrivatePort":53,"PublicPort":5000,"Type":"udp"}
{"IP":"0.0.0.0","PrivatePort":54,"PublicPort":5001,"Type":"udp"}
{"PublicPort":5001,"PrivatePort":54,"Type":"udp","IP":"::"}
{"IP":"192.0.2.9","PrivatePort":80,"PublicPort":7,"Type":"tcp"}
{"IP":"192.0.2.9","PrivatePort":80,"PublicPort":82,"Type":"tcp"}
{"IP":"192.0.2.9","PrivatePort":80,"PublicPort":90,"Type":"tcp"}
{"IP":"192.0.2.10","PrivatePort":80,"PublicPort":81,"Type":"tcp"}
{"IP":"","PrivatePort":443,"Type":"tcp"}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			list := `[{"Ports":` + tt.engine + `,"NetworkSettings":{"Networks":{"n":{"EndpointID":"e"}}}}]`
			got := editList([]byte(list), map[string]Endpoint{"e": both})
			want := `[{"Ports":[` + strings.ReplaceAll(tt.want, "\n", ",") + `],"NetworkSettings":{"Networks":{"n":{"EndpointID":"e"}}}}]`
			assert.Equal(t, want, string(got))
		})
	}
}
