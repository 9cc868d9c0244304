package store

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

func TestMappingsAreTexts(t *testing.T) {
	ms := Mappings{
		{Proto: portmap.TCP, HostPort: 8080, HostPortEnd: 8080, Port: 80, Origin: portmap.OriginEngine},
		{Proto: portmap.UDP, HostIP: netip.MustParseAddr("::1"), HostPort: 53, HostPortEnd: 54, Port: 153, Origin: portmap.OriginSticky},
		{Proto: portmap.SCTP, HostIP: netip.MustParseAddr("0.0.0.0"), HostPort: 1, HostPortEnd: 65535, Port: 1, Origin: portmap.OriginCommand},
	}
	text, err := marshal(ms)
	require.NoError(t, err)
	require.Equal(t, `["8080->80","[::1]:53-54->153-154/udp sticky","0.0.0.0:1-65535->1-65535/sctp command"]`, string(text))
	var got Mappings
	require.NoError(t, json.Unmarshal(text, &got))
	require.Equal(t, ms, got)
}

func TestMappingsOfBefore(t *testing.T) {
	var got Mappings
	require.NoError(t, json.Unmarshal([]byte(`[{"proto":17,"hostIP":"::1","hostPort":53,"hostPortEnd":54,"port":153,"origin":"engine"},"8080->80"]`), &got))
	text, err := marshal(got)
	require.NoError(t, err)
	require.Equal(t, `["[::1]:53-54->153-154/udp","8080->80"]`, string(text))
}

func TestBadMappings(t *testing.T) {
	for _, text := range []string{`"8080"`, `["8080"]`, `[80]`, `["80->80/icmp"]`, `["80 -> 80"]`, `[""]`, `["99999->1"]`} {
		var got Mappings
		assert.Error(t, json.Unmarshal([]byte(text), &got), text)
	}
	_, err := newEndpointEntry(Endpoint{ID: "e", Mappings: Mappings{{HostPort: 80, HostPortEnd: 80, Port: 80}}})
	require.ErrorIs(t, err, portmap.ErrBadPort, "no protocol")
}
