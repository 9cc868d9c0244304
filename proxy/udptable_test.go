package proxy

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func testFlow(port uint16) *flow {
	return &flow{key: flowKey{client: netip.AddrPortFrom(netip.IPv6Loopback(), port)}}
}

func add(t *testing.T, table *flowTable, f *flow) (evicted *flow) {
	t.Helper()
	evicted, ok := table.insert(f, table.epoch())
	require.True(t, ok)
	return evicted
}

func TestFlowExpiresByEitherDirection(t *testing.T) {
	for name, use := range map[string]func(*flowTable, *flow){
		"request": func(table *flowTable, f *flow) { table.lookup(f.key) },
		"reply":   func(table *flowTable, f *flow) { table.touch(f) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table, f := flowTable{max: 9}, testFlow(1)
				add(t, &table, f)
				for range 10 {
					time.Sleep(59 * time.Second)
					require.Equal(t, time.Now().Add(time.Second), table.expire(f, time.Minute))
					use(&table, f)
				}
				time.Sleep(time.Minute)
				require.Zero(t, table.expire(f, time.Minute))
				require.Nil(t, table.lookup(f.key))
				require.Zero(t, table.expire(f, time.Minute), "again")
			})
		})
	}
}

func TestFlowTableEvictsTheIdlest(t *testing.T) {
	table := flowTable{max: 3}
	a, b, c, d, e := testFlow(1), testFlow(2), testFlow(3), testFlow(4), testFlow(5)
	for _, f := range []*flow{a, b, c} {
		require.Nil(t, add(t, &table, f))
	}
	table.lookup(a.key)
	table.touch(b)
	require.Same(t, c, add(t, &table, d))
	table.touch(c) // which is out
	require.Nil(t, table.lookup(c.key))
	require.Same(t, a, add(t, &table, e))
	require.Equal(t, 3, table.len())
	table.remove(b)
	table.remove(b)
	require.Equal(t, 2, table.len())
	require.Nil(t, add(t, &table, a))
	require.Equal(t, 3, table.len())
}

// A flow whose backend was looked up before Reset must not come after it.
func TestFlowTableRefusesAFlowFromBeforeAReset(t *testing.T) {
	table := flowTable{max: 9}
	add(t, &table, testFlow(1))
	epoch := table.epoch()
	require.Len(t, table.takeAll(false), 1)
	_, ok := table.insert(testFlow(2), epoch)
	require.False(t, ok)
	require.Zero(t, table.len())
	add(t, &table, testFlow(3))

	require.Len(t, table.takeAll(true), 1)
	_, ok = table.insert(testFlow(4), table.epoch())
	require.False(t, ok, "after Close")
}
