package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/proxy"
)

func TestStatus(t *testing.T) {
	noEngine(t)
	d := newFakeDaemon(t, testEndpoints()...)
	d.status = driver.StatusResponse{
		Mappings: []driver.MappingStatus{
			{EndpointID: dnsEndpoint, Mapping: mapping(portmap.UDP, "", 53530, 53530, 53), Samples: []proxy.Sample{
				{Name: "portolan_proxy_flows", Value: 1024},
				{Name: "portolan_proxy_flows_evicted_total", Reason: "limit", Value: 7},
			}},
			{EndpointID: "0123456789abcdef", Mapping: mapping(portmap.TCP, "", 80, 80, 80), Samples: []proxy.Sample{
				{Name: "portolan_kernel_packets_dropped_total", Reason: "limit", Value: 1},
			}},
		},
		Host: []proxy.Sample{{Name: "portolan_conntrack_entries", Value: 3}},
	}
	stdout, stderr, status := portolan(t, "status")
	require.Equal(t, 0, status, stderr)
	assert.Equal(t, `PORTS           CONTAINER      NUMBER                                  REASON   VALUE
53530->53/udp   dns            portolan_proxy_flows                    -        1024
53530->53/udp   dns            portolan_proxy_flows_evicted_total      limit    7
80->80          0123456789ab   portolan_kernel_packets_dropped_total   limit    1
(host)          -              portolan_conntrack_entries              -        3
`, stdout)

	stdout, _, status = portolan(t, "status", "--json")
	require.Equal(t, 0, status)
	var got driver.StatusResponse
	require.NoError(t, json.Unmarshal([]byte(stdout), &got))
	assert.Equal(t, d.status, got)
}

func TestProxyLimits(t *testing.T) {
	good := proxyLimits{dialTimeout: time.Second, maxFlows: 1}
	require.NoError(t, good.check())
	for name, bad := range map[string]proxyLimits{
		"--dial-timeout 0s":    {maxFlows: 1},
		"--max-connections -1": {dialTimeout: 1, maxFlows: 1, maxConns: -1},
		"--max-flows 0":        {dialTimeout: 1},
		"--drain -1s":          {dialTimeout: 1, maxFlows: 1, drain: -time.Second},
		"--drain 1h0m1s":       {dialTimeout: 1, maxFlows: 1, drain: time.Hour + time.Second},
	} {
		require.ErrorContains(t, bad.check(), name)
	}
	_, stderr, status := portolan(t, "daemon", "--max-flows=0")
	assert.Equal(t, 2, status)
	assert.Contains(t, stderr, "--max-flows 0: must be more than 0")
}
