package driver

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/portmap"
)

func TestCleanupByDaemon(t *testing.T) {
	forwardingOff(t)
	netnstest.Bridge(t, "lan0", "192.0.2.1/24")
	r := twoNetworks(t)
	require.Equal(t, "1", sysctl(t, "ipv6/conf/all/forwarding"))
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/Portolan.Cleanup", nil))
	require.Equal(t, http.StatusNotFound, w.Code, "not by looking at it")
	require.Len(t, r.store.Networks(), 2)

	r.mapper.Fail = func(op string, p portmap.Publication) error {
		if op == "RemoveNetwork" && p.Network == id(1) {
			return errors.New("netlink: no")
		}
		return nil
	}
	_, answer := r.post("/Portolan.Cleanup", "")
	assert.Contains(t, answer["Err"], "netlink: no")
	assert.Len(t, r.store.Networks(), 1, "the other one is gone")
	r.mapper.Fail = nil
	for range 2 {
		_, answer = r.post("/Portolan.Cleanup", "")
		require.Empty(t, answer)
		r.nothingLeft()
	}
	assert.Equal(t, "0", sysctl(t, "ipv4/ip_forward"))
	assert.Equal(t, "0", sysctl(t, "ipv6/conf/all/forwarding"))
	assert.Equal(t, "0", sysctl(t, "ipv4/conf/all/accept_redirects"))
	linkOf(t, "lan0")
}

// A network that comes while everything goes comes after it.
func TestCleanupLetsNobodyIn(t *testing.T) {
	r := twoNetworks(t)
	came := make(chan map[string]any)
	r.cfg.Zones = zones(func(bridge string) {
		if bridge == bridgeOf(1) {
			go func() {
				_, answer := r.post("/NetworkDriver.CreateNetwork", networkOf(3, true, nil))
				came <- answer
			}()
			if r.admitting.TryLock() {
				r.admitting.Unlock()
				assert.Fail(t, "somebody is let in")
			}
		}
	})
	_, answer := r.post("/Portolan.Cleanup", "")
	require.Empty(t, answer)
	require.Empty(t, <-came)
	require.Len(t, r.store.Networks(), 1)
	require.Len(t, r.mapper.Networks(), 1)
	linkOf(t, bridgeOf(3))
}

func TestCleanupWithoutDaemon(t *testing.T) {
	forwardingOff(t)
	netnstest.Bridge(t, "lan0", "192.0.2.1/24")
	r := twoNetworks(t)
	for range 2 {
		require.NoError(t, Cleanup(nil, "", r.store.Sysctls()))
		links, err := ourLinks()
		require.NoError(t, err)
		require.Empty(t, links)
		assert.Equal(t, "0", sysctl(t, "ipv4/ip_forward"))
		assert.Equal(t, "0", sysctl(t, "ipv6/conf/all/forwarding"))
	}
	linkOf(t, "lan0")
}
