package portmap

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseListed(t *testing.T) {
	tests := []struct{ name, line, want string }{
		{"IPv4", "ipv4     2 udp      17 29 src=127.0.0.1 dst=127.0.1.9 sport=33333 dport=53 [UNREPLIED] src=172.20.0.2 dst=127.0.0.1 sport=5353 dport=33333 mark=0 zone=0 use=2",
			"127.0.1.9:53 172.20.0.2:5353"},
		{"IPv6", "ipv6     10 udp      17 29 src=fd00:0000:0000:0000:0000:0000:0000:0001 dst=fd00:0000:0000:0000:0000:0000:0000:0002 sport=1 dport=2 src=fd00:0000:0000:0000:0000:0000:0000:0002 dst=fd00:0000:0000:0000:0000:0000:0000:0001 sport=2 dport=1 [ASSURED] mark=0 use=2",
			"[fd00::2]:2 [fd00::2]:2"},
		{"with counters, offloaded", "ipv4     2 udp      17 src=192.0.2.1 dst=192.0.2.2 sport=1 dport=2 packets=3 bytes=90 src=192.0.2.2 dst=192.0.2.1 sport=2 dport=1 packets=1 bytes=30 [OFFLOAD] mark=0 use=2",
			"192.0.2.2:2 192.0.2.2:2"},
		{"TCP", "ipv4     2 tcp      6 431999 ESTABLISHED src=192.0.2.1 dst=192.0.2.2 sport=1 dport=2 src=192.0.2.2 dst=192.0.2.1 sport=2 dport=1 [ASSURED] mark=0 use=2", "other"},
		{"no line", "", "unknown"},
		{"half a line", "ipv4     2 udp      17 29 src=127.0.0.1 dst=127.0.1.9 sport=33333 dport=53", "unknown"},
		{"no port", "ipv4     2 udp      17 29 src=127.0.0.1 dst=127.0.1.9 sport=1 dport=70000 src=127.0.1.9 dst=127.0.0.1 sport=70000 dport=1", "unknown"},
		{"no address", "ipv4     2 udp      17 29 src=x dst=x sport=1 dport=2 src=x dst=x sport=2 dport=1", "unknown"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, isUDP, ok := parseListed(tt.line)
			got := "unknown"
			switch {
			case ok && !isUDP:
				got = "other"
			case ok:
				got = e.origDst.String() + " " + e.replySrc.String()
			}
			assert.Equal(t, tt.want, got)
		})
	}
}

// A routed endpoint has no host port: one of the same number is another's, whose
// flows its coming and going leaves alone.
func TestUDPPortsOfARoutedEndpoint(t *testing.T) {
	routed := Publication{Target{Endpoint: "r", IPv4: addr("172.21.0.2"), Routed4: true}, []Mapping{one(UDP, "", 53, 53)}}
	nat := Publication{Target{Endpoint: "n", IPv4: addr("172.20.0.2")}, []Mapping{one(UDP, "", 53, 5353)}}
	host := netip.MustParseAddrPort("192.0.2.1:53")
	for name, ports := range map[string]*udpTargets{
		"comes": udpPorts(Publication{}, []Publication{routed, nat}),
		"goes":  udpPorts(routed, []Publication{nat}),
	} {
		from, ok := ports.lookup(host)
		assert.True(t, ok, name)
		assert.Equal(t, netip.MustParseAddrPort("172.20.0.2:5353"), from, name)
	}
	routed.Routed6 = true
	assert.Nil(t, udpPorts(routed, nil))
}

// What the kernel lists as text is what it dumps.
func TestListedIsDumped(t *testing.T) {
	m, err := NewNFTables(nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, m.Load(nil, nil))
		assert.NoError(t, m.Close())
	})
	require.NoError(t, m.Load([]Network{{ID: "n", Bridge: "plbr0", Subnet4: netip.MustParsePrefix("172.20.0.0/16")}},
		[]Publication{{Target{Endpoint: "e", Network: "n", IPv4: addr("172.20.0.2")}, []Mapping{one(UDP, "127.0.0.1", 5300, 53)}}}))
	c, err := net.ListenUDP("udp", nil)
	require.NoError(t, err)
	defer c.Close()
	for port := range uint16(100) {
		for _, to := range []string{"127.0.0.7", "::1"} {
			_, _ = c.WriteToUDPAddrPort([]byte{0}, netip.AddrPortFrom(addr(to), 2000+port)) // refused, and tracked
		}
	}
	var dumped, listed []string
	collect := func(into *[]string) func(flow) {
		return func(f flow) {
			if f.proto == UDP {
				*into = append(*into, f.origDst.String()+" "+f.replySrc.String())
			}
		}
	}
	require.NoError(t, eachFlow(collect(&dumped)))
	require.True(t, eachListed("/proc/sys/net", collect(&listed)))
	require.GreaterOrEqual(t, len(dumped), 200)
	slices.Sort(dumped)
	slices.Sort(listed)
	require.Equal(t, dumped, listed)
}

func TestLargeTableIsNotListed(t *testing.T) {
	dir := t.TempDir()
	count := func(text string) bool {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "netfilter"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "netfilter/nf_conntrack_count"), []byte(text), 0o644))
		return eachListed(dir, func(flow) { assert.Fail(t, "an entry of no table") })
	}
	require.False(t, eachListed(dir, nil), "not known")
	require.False(t, count("1001\n"))
	require.False(t, count("many"))
	require.True(t, count("0\n"))
}
