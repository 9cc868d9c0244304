package main

import (
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/internal/sklookup"
	"github.com/portolan/portolan/internal/store"
)

// What a killed daemon left in the sysctl goes, whatever holds ranges next, and
// what somebody else has put there stays.
func TestReservedPortsOfAnEarlierProcess(t *testing.T) {
	netnstest.Sysctl(t, sklookup.ReservedPorts, "8080,10000-19999")
	st, err := store.Open(t.TempDir(), nil)
	require.NoError(t, err)
	defer st.Close()
	require.NoError(t, st.PutSysctl(store.Sysctl{Path: sklookup.ReservedPorts, New: "10000-19999"}))
	r, err := openRanges(rangesSockets, "/proc/sys/net", st, nil, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	assert.Equal(t, "sockets", r.state())
	assert.Nil(t, r.forPublisher())
	require.NoError(t, r.Close())
	now, err := os.ReadFile("/proc/sys/net/" + sklookup.ReservedPorts)
	require.NoError(t, err)
	assert.Equal(t, "8080", strings.TrimSpace(string(now)))
	assert.Empty(t, st.Sysctls())
	netnstest.Sysctl(t, sklookup.ReservedPorts, "\n")
}

// The managed plugin has CAP_NET_ADMIN and nothing else.
func TestRangesWithoutCapabilities(t *testing.T) {
	st, err := store.Open(t.TempDir(), nil)
	require.NoError(t, err)
	defer st.Close()
	asNobody(t, func() error {
		r, err := openRanges(rangesAuto, "/proc/sys/net", st, nil, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		assert.Equal(t, "sockets", r.state())
		assert.Contains(t, r.reason, "CAP_BPF")
		return r.Close()
	})
}
