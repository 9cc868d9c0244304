package portmaptest

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

// Mappings parses the notation of Mapping.String, as "8080->80" or
// "[::1]:53-54->153-154/udp", and fails the test on anything else.
func Mappings(t testing.TB, notation ...string) []portmap.Mapping {
	t.Helper()
	ms := make([]portmap.Mapping, 0, len(notation))
	for _, s := range notation {
		host, container, _ := strings.Cut(s, "->")
		container, proto, _ := strings.Cut(container, "/")
		m := portmap.Mapping{Proto: portmap.TCP}
		if i := slices.IndexFunc(portmap.Protos[:], func(p portmap.Proto) bool { return p.String() == proto }); i >= 0 {
			m.Proto = portmap.Protos[i]
		}
		if i := strings.LastIndexByte(host, ':'); i >= 0 {
			m.HostIP = netip.MustParseAddr(strings.Trim(host[:i], "[]"))
			host = host[i+1:]
		}
		first, last, ranged := strings.Cut(host, "-")
		if !ranged {
			last = first
		}
		m.HostPort, m.HostPortEnd = port(t, first), port(t, last)
		first, _, _ = strings.Cut(container, "-")
		m.Port = port(t, first)
		require.Equal(t, s, m.String(), "notation of a mapping")
		ms = append(ms, m)
	}
	return ms
}

func port(t testing.TB, s string) uint16 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 16)
	require.NoError(t, err)
	return uint16(n)
}
