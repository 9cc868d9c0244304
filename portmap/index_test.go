package portmap

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// naive is the index written for reading: every port of every address by itself.
type naive map[naiveKey]string

type naiveKey struct {
	proto Proto
	addr  netip.Addr
	port  uint16
}

func (x naive) each(m Mapping, f func(naiveKey)) {
	addrs := []netip.Addr{m.HostIP}
	if !m.HostIP.IsValid() {
		addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	for i := range m.Len() {
		for _, a := range addrs {
			f(naiveKey{m.Proto, a, m.at(i).HostPort})
		}
	}
}

// conflict is the first port of m that is not self's.
func (x naive) conflict(m Mapping, self string) (port uint16, found bool) {
	for k, owner := range x {
		if k.proto != m.Proto || owner == self || k.port < m.HostPort || k.port > m.HostPortEnd {
			continue
		}
		sameFamily := k.addr.Is4() && m.Is4() || k.addr.Is6() && m.Is6()
		if !sameFamily || !k.addr.IsUnspecified() && !m.Wildcard() && k.addr != m.HostIP {
			continue
		}
		if !found || k.port < port {
			port, found = k.port, true
		}
	}
	return port, found
}

func TestPortIndexRandom(t *testing.T) {
	hosts := []string{"", "0.0.0.0", "::", "127.0.0.1", "127.0.0.2", "::1"}
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 0))
		index, model := portIndex{}, naive{}
		type entry struct {
			m     Mapping
			owner string
		}
		var entries []entry
		for range 200 {
			first := 65535 - r.IntN(60)
			if r.IntN(2) == 0 {
				first = 1 + r.IntN(60)
			}
			m := ports(Protos[r.IntN(2)], hosts[r.IntN(len(hosts))], uint16(first), uint16(min(first+r.IntN(8), 65535)), 1)
			owner := fmt.Sprint(r.IntN(3))

			s, _, found := index.conflict(m, owner)
			port, want := model.conflict(m, owner)
			require.Equal(t, want, found, "seed %d: %s for %s", seed, m, owner)
			if found {
				require.Equal(t, port, s.first, "seed %d: first taken port of %s", seed, m)
				require.NotEqual(t, owner, s.owner)
				require.LessOrEqual(t, s.last, m.HostPortEnd)
			}
			if _, taken := model.conflict(m, ""); !taken {
				require.Zero(t, index.count(m))
				index.add(m, owner)
				model.each(m, func(k naiveKey) { model[k] = owner })
				entries = append(entries, entry{m, owner})
			} else {
				n := 0
				for i := range m.Len() {
					if _, taken := model.conflict(m.at(i), ""); taken {
						n++
					}
				}
				require.Equal(t, n, index.count(m), "seed %d: ports of %s that are taken", seed, m)
			}
			if len(entries) > 0 && r.IntN(3) == 0 {
				// A part of what somebody holds, or of what somebody else does.
				e := entries[r.IntN(len(entries))]
				cut := e.m
				cut.HostPort += uint16(r.IntN(e.m.Len()))
				cut.HostPortEnd -= uint16(r.IntN(cut.Len()))
				by := fmt.Sprint(r.IntN(3))
				index.remove(cut, by)
				model.each(cut, func(k naiveKey) {
					if model[k] == by {
						delete(model, k)
					}
				})
			}
		}
		for _, e := range entries {
			for owner := range 3 {
				index.remove(e.m, fmt.Sprint(owner))
			}
		}
		require.Empty(t, index, "seed %d", seed)
	}
}
