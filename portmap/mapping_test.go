package portmap

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMappingString(t *testing.T) {
	for want, m := range map[string]Mapping{
		"8080->80":                             one(TCP, "", 8080, 80),
		"53530->53/udp":                        one(UDP, "", 53530, 53),
		"5000->5000/sctp":                      one(SCTP, "", 5000, 5000),
		"10000-10999->10000-10999/udp":         ports(UDP, "", 10000, 10999, 10000),
		"127.0.0.1:8000-8001->80-81":           ports(TCP, "127.0.0.1", 8000, 8001, 80),
		"0.0.0.0:80->80":                       one(TCP, "0.0.0.0", 80, 80),
		"[::]:80->80":                          one(TCP, "::", 80, 80),
		"[2001:db8::1]:65000-65535->1-536/udp": ports(UDP, "2001:db8::1", 65000, 65535, 1),
	} {
		require.Equal(t, want, m.String())
	}
}

func TestMapping(t *testing.T) {
	m := ports(UDP, "", 10000, 10999, 20000)
	require.Equal(t, 1000, m.Len())
	require.Equal(t, uint16(20999), m.PortEnd())
	require.True(t, m.Shifted())
	require.Equal(t, one(UDP, "", 10999, 20999), m.at(999))
	all := ports(TCP, "", 1, 65535, 1)
	require.Equal(t, 65535, all.Len())
	require.Equal(t, uint16(65535), all.PortEnd())
	require.False(t, all.Shifted())
	tests := []struct {
		host               string
		is4, is6, wildcard bool
	}{
		{"", true, true, true}, {"0.0.0.0", true, false, true}, {"::", false, true, true},
		{"127.0.0.1", true, false, false}, {"::1", false, true, false},
	}
	for _, tt := range tests {
		m := one(TCP, tt.host, 1, 1)
		require.Equal(t, tt.is4, m.Is4(), tt.host)
		require.Equal(t, tt.is6, m.Is6(), tt.host)
		require.Equal(t, tt.wildcard, m.Wildcard(), tt.host)
	}
}

// TestHeld has routed families take no host port.
func TestHeld(t *testing.T) {
	ms := []Mapping{one(TCP, "", 1, 1), one(TCP, "0.0.0.0", 2, 2), one(TCP, "::1", 3, 3)}
	tests := []struct {
		routed4, routed6 bool
		want             []string
	}{
		{false, false, []string{"1->1", "0.0.0.0:2->2", "[::1]:3->3"}},
		{true, false, []string{"[::]:1->1", "[::1]:3->3"}},
		{false, true, []string{"0.0.0.0:1->1", "0.0.0.0:2->2"}},
		{true, true, nil},
	}
	for _, tt := range tests {
		p := Publication{Target{Routed4: tt.routed4, Routed6: tt.routed6}, ms}
		require.Equal(t, tt.want, strs(p.Held()))
	}
}

// TestServedByProxy is what the kernel does not carry.
func TestServedByProxy(t *testing.T) {
	both := Target{IPv4: addr("172.20.0.2"), IPv6: addr("fd20::2")}
	only4, only6 := both, both
	only4.IPv6, only6.IPv4 = Mapping{}.HostIP, Mapping{}.HostIP
	routed4, routed := both, both
	routed4.Routed4, routed.Routed4, routed.Routed6 = true, true, true
	tests := []struct {
		m                                   Mapping
		both, only4, only6, routed4, routed string
	}{
		{one(TCP, "", 1, 1), "6", "6", "46", "6", ""},
		{one(UDP, "", 1, 1), "46", "46", "46", "6", ""},
		{one(SCTP, "", 1, 1), "", "", "", "", ""},
		{one(TCP, "0.0.0.0", 1, 1), "", "", "4", "", ""},
		{one(UDP, "0.0.0.0", 1, 1), "4", "4", "4", "", ""},
		{one(TCP, "::", 1, 1), "6", "6", "6", "6", ""},
		{one(TCP, "127.0.0.1", 1, 1), "", "", "4", "", ""},
		{one(UDP, "192.0.2.1", 1, 1), "", "", "4", "", ""},
		{one(TCP, "::1", 1, 1), "6", "6", "6", "6", ""},
		{one(UDP, "2001:db8::1", 1, 1), "", "6", "", "", ""},
	}
	for _, tt := range tests {
		var got []string
		for _, to := range []Target{both, only4, only6, routed4, routed} {
			families := ""
			ip4, ip6 := to.served(tt.m)
			if ip4 {
				families += "4"
			}
			if ip6 {
				families += "6"
			}
			got = append(got, families)
		}
		require.Equal(t, []string{tt.both, tt.only4, tt.only6, tt.routed4, tt.routed}, got, "%s/%s", tt.m, tt.m.Proto)
	}
}

func TestJoinMappings(t *testing.T) {
	sticky := one(TCP, "", 8002, 82)
	sticky.Origin = OriginSticky
	tests := []struct {
		name string
		in   []Mapping
		want []string
	}{
		{"nothing", nil, nil},
		{"neighbours, in any order", []Mapping{one(UDP, "", 11, 11), one(UDP, "", 10, 10), one(UDP, "", 12, 12)}, []string{"10-12->10-12/udp"}},
		{"a gap", []Mapping{one(TCP, "", 10, 10), one(TCP, "", 12, 12)}, []string{"10->10", "12->12"}},
		{"another protocol", []Mapping{one(TCP, "", 10, 10), one(UDP, "", 11, 11)}, []string{"10->10", "11->11/udp"}},
		{"another address", []Mapping{one(TCP, "", 10, 10), one(TCP, "127.0.0.1", 11, 11)}, []string{"10->10", "127.0.0.1:11->11"}},
		{"another difference", []Mapping{one(TCP, "", 8080, 80), one(TCP, "", 8081, 80)}, []string{"8080->80", "8081->80"}},
		{"shifted", []Mapping{one(TCP, "", 8081, 81), one(TCP, "", 8080, 80)}, []string{"8080-8081->80-81"}},
		{"another origin", []Mapping{one(TCP, "", 8000, 80), one(TCP, "", 8001, 81), sticky}, []string{"8000-8001->80-81", "8002->82"}},
		{"ranges", []Mapping{ports(TCP, "", 20, 29, 20), ports(TCP, "", 10, 19, 10)}, []string{"10-29->10-29"}},
		{"to the last port", []Mapping{one(UDP, "", 65535, 65535), one(UDP, "", 65534, 65534)}, []string{"65534-65535->65534-65535/udp"}},
		{"the first follows on no last", []Mapping{one(UDP, "", 65535, 65535), one(UDP, "", 1, 1)}, []string{"1->1/udp", "65535->65535/udp"}},
		{"twice", []Mapping{one(UDP, "", 1, 1), one(UDP, "", 1, 1)}, []string{"1->1/udp", "1->1/udp"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { require.Equal(t, tt.want, strs(joinMappings(tt.in))) })
	}
}

// TestJoinMappingsRandom takes mappings apart and joins them again.
func TestJoinMappingsRandom(t *testing.T) {
	for range 200 {
		var want, pieces []Mapping
		next := 1
		for next < 300 {
			n := 1 + rand.IntN(20)
			m := ports(Protos[rand.IntN(3)], []string{"", "127.0.0.1", "::1"}[rand.IntN(3)], uint16(next), uint16(next+n-1), uint16(next+rand.IntN(2)*1000))
			want = append(want, m)
			for i := range m.Len() {
				pieces = append(pieces, m.at(i))
			}
			next += n + 1
		}
		rand.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		SortMappings(want)
		require.Equal(t, want, joinMappings(pieces))
	}
}

func TestSortMappings(t *testing.T) {
	want := []Mapping{
		one(TCP, "", 80, 80), one(TCP, "0.0.0.0", 80, 80), one(TCP, "127.0.0.1", 80, 79), one(TCP, "127.0.0.1", 80, 80), one(TCP, "::1", 80, 80),
		one(TCP, "", 81, 1), one(UDP, "", 1, 1), one(SCTP, "", 1, 1),
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	SortMappings(got)
	require.Equal(t, want, got)
}

func TestParseMapping(t *testing.T) {
	for _, text := range []string{
		"8080->80", "53->53/udp", "10000-10999->20000-20999/udp", "0.0.0.0:1-65535->1-65535/sctp", "[::]:80->80", "[2001:db8::1]:53-54->53-54/udp",
	} {
		m, err := ParseMapping(text)
		require.NoError(t, err)
		require.Equal(t, text, m.String())
	}
	for text, want := range map[string]string{
		"":                      "",
		"80":                    "",
		"80->":                  "",
		"->80":                  "",
		"80->80/icmp":           "unknown protocol",
		"80->80/tcp":            `it would be written "80->80"`,
		"080->80":               `it would be written "80->80"`,
		"80-80->80":             `it would be written "80->80"`,
		"80-90->80":             `it would be written "80-90->80-90"`,
		"65536->80":             "out of range",
		"localhost:80->80":      "localhost",
		"::1:80->80":            `it would be written "[::1]:80->80"`,
		"8080->80 sticky":       "",
		"192.0.2.1:80->80/udp ": "",
	} {
		_, err := ParseMapping(text)
		require.ErrorIs(t, err, ErrBadPort, text)
		require.ErrorContains(t, err, want, text)
	}
}
