package driver

import (
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/portolan/portolan/internal/store"
)

const year = 365 * 24 * time.Hour

// jumped is t after somebody has set the clock: another time of the day, the
// same monotonic reading. Package time makes none; this is its layout since Go
// 1.9, seconds above 30 bits of nanoseconds.
func jumped(t time.Time, by time.Duration) time.Time {
	wall := (*uint64)(unsafe.Pointer(&t))
	*wall = uint64(int64(*wall) + int64(by/time.Second)<<30)
	return t
}

func TestJumped(t *testing.T) {
	now := time.Now()
	for _, by := range []time.Duration{year, -year} {
		there := jumped(now, by)
		require.Equal(t, now.Round(0).Add(by), there.Round(0))
		require.Zero(t, there.Sub(now))
	}
}

func TestClock(t *testing.T) {
	c := newClock()
	for _, by := range []time.Duration{0, year, -year} {
		at := c.at(jumped(c.began.Add(time.Hour), by))
		assert.Equal(t, c.began.Round(0).Add(time.Hour), at, "%v", by)
		assert.Equal(t, time.Minute, age(at.Add(-time.Minute), at))
		assert.Equal(t, year, age(at.Add(-year), at))
		assert.Zero(t, age(at.Add(time.Second), at))
	}
}

// ids of the endpoints that are remembered after a Reap at that time.
func (r *rig) reapedAt(now time.Time) (ids []string) {
	r.t.Helper()
	require.NoError(r.t, r.Reap(now))
	for _, ep := range r.store.Endpoints() {
		ids = append(ids, ep.ID)
	}
	return ids
}

// abandon does what the engine does that cannot reach the daemon.
func (r *rig) abandon(e int) {
	c := r.moveIn(e)
	_, inside := vethNames(id(e))
	host, err := netns.Get()
	require.NoError(r.t, err)
	defer host.Close()
	require.NoError(r.t, c.Do(func() error { return netlink.LinkSetNsFd(linkOf(r.t, inside), int(host)) }))
}

// A clock that is set while the daemon runs neither buries the living nor keeps
// the dead.
func TestReapWhenTheClockJumps(t *testing.T) {
	for name, by := range map[string]time.Duration{"forward": 10 * year, "backward": -10 * year} {
		t.Run(name, func(t *testing.T) {
			r := twoNetworks(t)
			r.moveIn(20)
			r.abandon(10)
			r.ok("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(12), "Interface": object{"Address": "10.1.0.4/24"}})
			r.ok("Leave", endpointOf(1, 11))
			at := func(after time.Duration) time.Time { return jumped(time.Now().Add(after), by) }

			assert.Equal(t, []string{id(10), id(11), id(12), id(20)}, r.reapedAt(at(0)))
			assert.Len(t, r.mapper.Publications(), 2, "a start takes its time")
			assert.Equal(t, []string{id(10), id(11), id(12), id(20)}, r.reapedAt(at(time.Minute)))
			assert.Len(t, r.mapper.Publications(), 1, "endpoint 10 was abandoned")
			assert.Equal(t, []string{id(10), id(11), id(20)}, r.reapedAt(at(11*time.Minute)))
			assert.Equal(t, []string{id(10), id(11), id(20)}, r.reapedAt(at(23*time.Hour)))
			assert.Equal(t, []string{id(20)}, r.reapedAt(at(25*time.Hour)))
			assert.Equal(t, []string{"54->53/udp"}, r.published(20))
		})
	}
}

// What comes while the look is taken is younger than the look, however long the
// daemon has been there.
func TestReapSparesWhatComesMeanwhile(t *testing.T) {
	r := twoNetworks(t)
	r.clock = clock{time.Now().Add(-year)}
	now := time.Now()
	r.run(1, 12, 4, true, "/sb4") // joined, and its interface not moved in yet
	r.ok("ProgramExternalConnectivity", programOf(1, 12, udp("", 55, 53)))
	r.ok("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(13), "Interface": object{"Address": "10.1.0.5/24"}})
	r.reapedAt(now)
	assert.Equal(t, []string{"55->53/udp"}, r.published(12))
	r.ok("Join", object{"NetworkID": id(1), "EndpointID": id(13), "SandboxKey": "/sb5"})
}

// A clock that was set back before the daemon began leaves records of the
// future: they age from its beginning on.
func TestReapWhenTheClockWasSetBack(t *testing.T) {
	r := twoNetworks(t)
	r.moveIn(20)
	r.abandon(10)
	r.ok("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(12), "Interface": object{"Address": "10.1.0.4/24"}})
	r.ok("Leave", endpointOf(1, 11))
	for _, ep := range r.store.Endpoints() {
		_, err := r.store.UpdateEndpoint(ep.ID, func(e *store.Endpoint) {
			e.Created = e.Created.Add(10 * year)
			if !e.Gone.IsZero() {
				e.Gone = e.Gone.Add(10 * year)
			}
		})
		require.NoError(t, err)
	}
	r.restart()
	at := func(after time.Duration) time.Time { return time.Now().Add(after) }
	assert.Equal(t, []string{id(10), id(11), id(12), id(20)}, r.reapedAt(at(0)))
	assert.Len(t, r.mapper.Publications(), 2)
	r.reapedAt(at(time.Minute))
	assert.Len(t, r.mapper.Publications(), 1)
	assert.Equal(t, []string{id(10), id(11), id(20)}, r.reapedAt(at(11*time.Minute)))
	assert.Equal(t, []string{id(20)}, r.reapedAt(at(25*time.Hour)))
}
