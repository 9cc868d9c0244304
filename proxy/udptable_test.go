package proxy

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func testFlow(port uint16) *flow {
	return &flow{key: flowKey{client: netip.AddrPortFrom(netip.IPv6Loopback(), port)}}
}

func TestFlowExpiresOnceIdle(t *testing.T) {
	var table flowTable
	now := time.Now()
	require.Nil(t, table.expired(time.Minute, now), "an empty table")
	f, other := testFlow(1), testFlow(2)
	table.insert(f, now)
	for range 10 {
		now = now.Add(59 * time.Second)
		require.Nil(t, table.expired(time.Minute, now))
		table.touch(f, now)
	}
	table.insert(other, now.Add(time.Second))
	now = now.Add(time.Minute)
	require.Same(t, f, table.expired(time.Minute, now))
	table.remove(f)
	require.Nil(t, table.lookup(f.key))
	require.Nil(t, table.expired(time.Minute, now))
	require.Same(t, other, table.expired(time.Minute, now.Add(time.Second)))
}

func TestFlowTableKnowsTheIdlest(t *testing.T) {
	var table flowTable
	require.Nil(t, table.idlest())
	a, b, c, d := testFlow(1), testFlow(2), testFlow(3), testFlow(4)
	now := time.Now()
	for _, f := range []*flow{a, b, c} {
		table.insert(f, now)
	}
	require.Same(t, a, table.idlest())
	table.touch(a, now)
	table.touch(b, now)
	require.Same(t, c, table.idlest())
	table.insert(d, now)
	table.remove(c)
	require.Same(t, a, table.idlest())
	require.Equal(t, 3, table.len())
	require.Same(t, d, table.lookup(d.key))
	for f := table.idlest(); f != nil; f = table.idlest() {
		table.remove(f)
	}
	require.Zero(t, table.len())
	table.insert(c, now)
	require.Same(t, c, table.idlest())
}
