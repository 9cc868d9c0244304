package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// samePool is a network with the pool of network 1.
func samePool(n int) object {
	request := networkOf(1, true, nil)
	request["NetworkID"] = id(n)
	return request
}

// An engine forgets a network whose creation or removal died with the daemon,
// and gives its pool to the next one. What is used, or was made since, stays.
func TestForgottenNetworkGivesWay(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, true, nil))
	assert.Contains(t, r.refused("CreateNetwork", samePool(2)), "overlaps")
	r.restart()
	r.run(1, 10, 2, true, "/sb1")
	assert.Contains(t, r.refused("CreateNetwork", samePool(2)), "overlaps")
	r.ok("DeleteEndpoint", endpointOf(1, 10))
	assert.Contains(t, r.refused("CreateNetwork", networkOf(3, true, object{optBridgeName: bridgeOf(1)})), "taken", "no engine minds bridges")
	r.ok("CreateNetwork", samePool(2))
	_, known := r.store.Network(id(1))
	assert.False(t, known)
	l, err := findLink(bridgeOf(1))
	assert.NoError(t, err)
	assert.Nil(t, l)
	linkOf(t, bridgeOf(2))
	r.ok("DeleteNetwork", object{"NetworkID": id(2)})
	r.nothingLeft()
}

// as is what a call of an engine that began then is answered.
func (r *rig) as(ctx context.Context, began time.Time, method string, what object) string {
	r.t.Helper()
	body, err := json.Marshal(what)
	require.NoError(r.t, err)
	request := httptest.NewRequest(http.MethodPost, "/NetworkDriver."+method, bytes.NewReader(body))
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, request.WithContext(WithCaller(ctx, began)))
	return strings.TrimSpace(w.Body.String())
}

// createBy creates an endpoint of network 1 for an engine that began then.
func (r *rig) createBy(e, host int, began time.Time) {
	r.t.Helper()
	what := object{"NetworkID": id(1), "EndpointID": id(e), "Interface": object{"Address": "10.1.0." + string(rune('0'+host)) + "/24"}}
	require.NotContains(r.t, r.as(r.t.Context(), began, "CreateEndpoint", what), "Err")
}

// A network that an engine had made when it was killed, before it could write that
// down, is in the next one's way no longer than until that asks.
func TestNetworkOfAKilledEngineGivesWay(t *testing.T) {
	r := newRig(t)
	engine, next := time.Now().Add(-time.Hour), time.Now()
	require.Equal(t, "{}", r.as(t.Context(), engine, "CreateNetwork", samePool(1)))
	require.Contains(t, r.as(t.Context(), engine, "CreateNetwork", samePool(2)), "overlaps")
	require.Equal(t, "{}", r.as(t.Context(), next, "CreateNetwork", samePool(3)))
	require.Contains(t, r.as(t.Context(), next, "CreateNetwork", samePool(4)), "overlaps")
	_, known := r.store.Network(id(1))
	assert.False(t, known)
	r.ok("DeleteNetwork", object{"NetworkID": id(3)})

	// Whoever has ended meanwhile does not have it.
	ctx, cancel := context.WithCancel(t.Context())
	r.mapper.Fail = func(string, portmap.Publication) error { cancel(); return nil }
	assert.Empty(t, r.as(ctx, next, "CreateNetwork", samePool(5)))
	require.Eventually(t, func() bool {
		release, err := r.networks.own(t.Context(), id(5)) // after the call, which has nobody to answer
		require.NoError(t, err)
		release()
		r.networks.mu.Lock()
		defer r.networks.mu.Unlock()
		return len(r.store.Networks())+len(r.networks.m) == 0
	}, 20*time.Second, time.Millisecond)
	r.nothingLeft()
}

// What an engine had begun and not finished when it ended is known to be dead
// when the next one asks for something.
func TestNewEngineBuriesTheDead(t *testing.T) {
	r := newRig(t)
	pub := portmap.NewPublisher(portmap.PublisherConfig{Mapper: r.mapper})
	r.Driver.pub = pub
	t.Cleanup(func() { assert.NoError(t, pub.Close()) })
	engine := time.Now().Add(-time.Hour)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.createBy(10, 2, engine)
	r.ok("Join", object{"NetworkID": id(1), "EndpointID": id(10), "SandboxKey": "/sb1"})
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 5353, 53)))

	r.createBy(11, 3, engine.Add(10*time.Millisecond)) // another connection of the same engine
	assert.Equal(t, []string{"5353->53/udp"}, r.published(10))
	r.createBy(12, 4, time.Now())
	assert.Empty(t, r.published(10))
	linkless, err := findPort(id(10))
	assert.NoError(t, err)
	assert.Nil(t, linkless)
	r.ok("Join", object{"NetworkID": id(1), "EndpointID": id(12), "SandboxKey": "/sb2"})
	r.ok("ProgramExternalConnectivity", programOf(1, 12, udp("", 5353, 53)))
	assert.Equal(t, []string{"5353->53/udp"}, r.published(12))
}

// A container whose namespace some process still holds has ended all the same
// when the next engine has removed the sandbox's file, and lives on when it has
// not (live-restore).
func TestNewEngineBuriesWhatHasNoSandbox(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	key := filepath.Join(t.TempDir(), "0123456789ab")
	require.NoError(t, os.WriteFile(key, nil, 0o600))
	r.createBy(10, 2, time.Now().Add(-time.Hour))
	r.ok("Join", object{"NetworkID": id(1), "EndpointID": id(10), "SandboxKey": key})
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 5353, 53)))
	r.moveIn(10)

	next := time.Now()
	r.createBy(11, 3, next)
	assert.Equal(t, []string{"5353->53/udp"}, r.published(10))
	require.NoError(t, os.Remove(key))
	r.createBy(12, 4, next)
	assert.Equal(t, []string{"5353->53/udp"}, r.published(10), "it was looked at when the engine came")
	r.createBy(13, 5, next.Add(2*time.Second))
	assert.Empty(t, r.published(10))
	port, err := findPort(id(10))
	assert.NoError(t, err)
	assert.Nil(t, port)
}

// An engine that starts after somebody has set the clock is not older than what it
// asks for.
func TestEngineAfterTheClockWasSet(t *testing.T) {
	c := newClock()
	for _, by := range []time.Duration{year, -year} {
		var e engines
		ctx := WithCaller(t.Context(), jumped(c.began.Add(time.Minute), by))
		assert.True(t, e.meet(ctx))
		assert.True(t, e.outlived(store.Endpoint{Created: c.at(c.began)}, c), "of the engine before")
		assert.False(t, e.outlived(store.Endpoint{Created: c.at(c.began.Add(2 * time.Minute))}, c))
	}
	assert.False(t, new(engines).outlived(store.Endpoint{Created: c.now()}, c), "nobody has asked yet")
}
