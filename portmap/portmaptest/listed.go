package portmaptest

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

// entry is one mapping in one family, as the kernel has it.
type entry struct {
	Endpoint string
	To       netip.Addr
	Mapping  string
}

// requireListed compares List with what the kernel should carry of pubs. How
// List tells a mapping for both families from two of one family each is the
// mapper's business, as the kernel has no word for it; a range that comes back
// in pieces is an error.
func requireListed(t *testing.T, m portmap.Mapper, pubs ...portmap.Publication) {
	t.Helper()
	got, err := m.List()
	require.NoError(t, err)
	for _, p := range got {
		require.Empty(t, p.Network, "List knows no networks")
		require.NotEmpty(t, p.Mappings, "List has an endpoint without mappings")
	}
	var want []portmap.Publication
	for _, p := range pubs {
		want = append(want, inKernel(p))
	}
	w, g := entries(want), entries(got)
	if len(w) > 100 {
		require.True(t, slices.Equal(w, g), "%d entries wanted, %d listed", len(w), len(g))
		return
	}
	require.Equal(t, w, g)
}

func entries(pubs []portmap.Publication) []entry {
	es := []entry{}
	for _, p := range pubs {
		for _, m := range p.Mappings {
			m.Origin = ""
			both := !m.HostIP.IsValid()
			if m.Is4() && p.IPv4.IsValid() {
				if both {
					m.HostIP = netip.IPv4Unspecified()
				}
				es = append(es, entry{p.Endpoint, p.IPv4, m.String()})
			}
			if both {
				m.HostIP = netip.Addr{}
			}
			if m.Is6() && p.IPv6.IsValid() {
				if both {
					m.HostIP = netip.IPv6Unspecified()
				}
				es = append(es, entry{p.Endpoint, p.IPv6, m.String()})
			}
		}
	}
	slices.SortFunc(es, func(a, b entry) int {
		return strings.Compare(a.Endpoint+a.To.String()+a.Mapping, b.Endpoint+b.To.String()+b.Mapping)
	})
	return es
}
