package portmap

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParsePorts(t *testing.T) {
	tests := []struct {
		spec string
		want []string // as PortBinding.String
	}{
		{"80", []string{"80/tcp"}},
		{"8080:80", []string{"8080:80/tcp"}},
		{"53:53/udp", []string{"53:53/udp"}},
		{"53:53/tcp", []string{"53:53/tcp"}},
		{"5000:6000/sctp", []string{"5000:6000/sctp"}},
		{"53/UDP", []string{"53/udp"}},
		{"80/", []string{"80/tcp"}},
		{":80", []string{"80/tcp"}},
		{"0:80", []string{"80/tcp"}},
		{"127.0.0.1:53:53/udp", []string{"127.0.0.1:53:53/udp"}},
		{"127.0.0.1::53/udp", []string{"127.0.0.1::53/udp"}},
		{"[::1]:53:53/udp", []string{"[::1]:53:53/udp"}},
		{"[::]::53", []string{"[::]::53/tcp"}},
		{"::1:53:53/udp", []string{"[::1]:53:53/udp"}},
		{"0.0.0.0:80:80", []string{"0.0.0.0:80:80/tcp"}},
		{"7000-7001", []string{"7000/tcp", "7001/tcp"}},
		{"8000-8002:80-82", []string{"8000:80/tcp", "8001:81/tcp", "8002:82/tcp"}},
		{"8000-8010:80", []string{"8000-8010:80/tcp"}},
		{"192.0.2.1:8000-8010:80/udp", []string{"192.0.2.1:8000-8010:80/udp"}},
		{"65534-65535:1-2/udp", []string{"65534:1/udp", "65535:2/udp"}},
		{"80-80:80-80", []string{"80:80/tcp"}},
	}
	for _, tt := range tests {
		t.Run(tt.spec, func(t *testing.T) {
			bs, err := ParsePorts(tt.spec)
			require.NoError(t, err)
			require.Equal(t, tt.want, strs(bs))
			for _, b := range bs {
				_, err := b.normal()
				require.NoError(t, err)
				again, err := ParsePorts(b.String())
				require.NoError(t, err, "its own notation")
				require.Equal(t, []PortBinding{b}, again)
			}
		})
	}
	bs, err := ParsePorts("80", "81-82:91-92/udp")
	require.NoError(t, err)
	require.Equal(t, []string{"80/tcp", "81:91/udp", "82:92/udp"}, strs(bs))
	bs, err = ParsePorts()
	require.NoError(t, err)
	require.Empty(t, bs)
}

func strs[T interface{ String() string }](all []T) (ss []string) {
	for _, s := range all {
		ss = append(ss, s.String())
	}
	return ss
}

func TestParsePortsErrors(t *testing.T) {
	for _, spec := range []string{
		"", ":", "/udp", "80/icmp", "80/udp4", "80/tcp/udp", "x:80", "80:x", "-80", "80-", "90-80", "90-80:90-80",
		"65536", "65536:80", "-1:80", "8000-8002:80-81", "8000:80-81", "256.0.0.1:80:80", "[::1:80:80", "host:80:80",
		"127.0.0.1:80", "fe80::1%eth0:80:80", "[fe80::1%eth0]:80:80", "8080:80 ", " 80", "8080:80\n", "1.2.3.4:80:80:80",
	} {
		t.Run(spec, func(t *testing.T) {
			bs, err := ParsePorts("1:1", spec)
			require.ErrorIs(t, err, ErrBadPort, "%v", bs)
			require.Empty(t, bs)
			require.ErrorContains(t, err, "publish ")
		})
	}
}

func TestNormal(t *testing.T) {
	b, err := PortBinding{Proto: UDP, Port: 53, HostPort: 53, HostIP: addr("::ffff:127.0.0.1")}.normal()
	require.NoError(t, err)
	require.Equal(t, PortBinding{Proto: UDP, Port: 53, HostPort: 53, HostPortEnd: 53, HostIP: addr("127.0.0.1")}, b)
	tests := []struct {
		b    PortBinding
		want string
	}{
		{PortBinding{Port: 80}, "protocol number 0; known are tcp (6), udp (17), sctp (132)"},
		{PortBinding{Proto: 1, Port: 80}, "protocol number 1"},
		{PortBinding{Proto: TCP, HostPort: 80}, "container port 0; a container port is 1 to 65535"},
		{PortBinding{Proto: TCP, Port: 80, HostPort: 90, HostPortEnd: 80}, "host port range 90-80 is reversed; write 80-90"},
		{PortBinding{Proto: TCP, Port: 80, HostPortEnd: 80}, "a host port range starts at 1"},
		{PortBinding{Proto: TCP, Port: 80, HostIP: addr("fe80::1%eth0")}, "host address fe80::1%eth0 is link-local"},
		{PortBinding{Proto: TCP, Port: 80, HostIP: addr("fe80::1")}, "host address fe80::1 is link-local"},
		{PortBinding{Proto: TCP, Port: 80, HostIP: addr("fd00::1%eth0")}, "host address fd00::1%eth0 has a zone; leave %eth0 out"},
		{PortBinding{Proto: UDP, Port: 80, HostIP: addr("224.0.0.1")}, "224.0.0.1 is not an address of one host"},
		{PortBinding{Proto: UDP, Port: 80, HostIP: addr("ff02::1")}, "ff02::1 is not an address of one host"},
		{PortBinding{Proto: UDP, Port: 80, HostIP: addr("255.255.255.255")}, "255.255.255.255 is not an address of one host"},
	}
	for _, tt := range tests {
		_, err := tt.b.normal()
		require.ErrorIs(t, err, ErrBadPort)
		require.ErrorContains(t, err, tt.want)
	}
}

// TestPortBindingJSON reads what engines 20.10 and 29 send.
func TestPortBindingJSON(t *testing.T) {
	var bs []PortBinding
	require.NoError(t, json.Unmarshal([]byte(`[
		{"Proto":17,"IP":"","Port":9100,"HostIP":"::1","HostPort":9100,"HostPortEnd":9100},
		{"Proto":132,"IP":"","Port":5000,"HostIP":"","HostPort":0,"HostPortEnd":0},
		{"Proto":17,"IP":"","Port":53,"HostIP":"","HostPort":53,"HostPortEnd":53},
		{"Proto":6,"IP":"","Port":7000,"HostIP":"","HostPort":30000,"HostPortEnd":30010},
		{"Proto":6,"IP":"172.20.0.2","Port":9000,"HostIP":"127.0.0.1","HostPort":9000,"HostPortEnd":9000}]`), &bs))
	require.Equal(t, []string{"[::1]:9100:9100/udp", "5000/sctp", "53:53/udp", "30000-30010:7000/tcp", "127.0.0.1:9000:9000/tcp"}, strs(bs))
	require.Equal(t, addr("172.20.0.2"), bs[4].IP)
	out, err := json.Marshal(bs[1])
	require.NoError(t, err)
	require.JSONEq(t, `{"Proto":132,"IP":"","Port":5000,"HostIP":"","HostPort":0,"HostPortEnd":0}`, string(out))
}

// TestMappingJSON is what the store keeps.
func TestMappingJSON(t *testing.T) {
	m := ports(UDP, "", 10000, 10999, 20000)
	out, err := json.Marshal(m)
	require.NoError(t, err)
	require.JSONEq(t, `{"proto":17,"hostPort":10000,"hostPortEnd":10999,"port":20000}`, string(out))
	m.HostIP, m.Origin = addr("::1"), OriginEngine
	out, err = json.Marshal(m)
	require.NoError(t, err)
	require.JSONEq(t, `{"proto":17,"hostIP":"::1","hostPort":10000,"hostPortEnd":10999,"port":20000,"origin":"engine"}`, string(out))
	var again Mapping
	require.NoError(t, json.Unmarshal(out, &again))
	require.Equal(t, m, again)
}

func TestProtos(t *testing.T) {
	for _, p := range Protos {
		require.True(t, p.Valid())
		got, err := ParseProto(p.String())
		require.NoError(t, err)
		require.Equal(t, p, got)
	}
	require.False(t, Proto(1).Valid())
	require.Equal(t, "proto-1", Proto(1).String())
	_, err := ParseProto("icmp")
	require.EqualError(t, err, `unknown protocol "icmp"; known are tcp, udp, sctp`)
}

// FuzzParsePorts looks for notations that crash, or that mean something else the
// second time.
func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{
		"80", "53:53/udp", "127.0.0.1::53/udp", "[::1]:53:53", "8000-8010:80", "8000-8002:80-82/sctp", ":", "[", "::ffff:1.2.3.4:1:1", "0-9:80",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		bs, err := ParsePorts(spec)
		if err != nil {
			require.ErrorIs(t, err, ErrBadPort)
			require.Empty(t, bs)
			return
		}
		require.NotEmpty(t, bs)
		for _, b := range bs {
			require.True(t, b.Proto.Valid())
			require.Empty(t, b.HostIP.Zone())
			n, err := b.normal()
			if err != nil {
				require.ErrorIs(t, err, ErrBadPort)
				continue
			}
			require.LessOrEqual(t, n.HostPort, n.HostPortEnd)
			again, err := ParsePorts(n.String())
			require.NoError(t, err, "%q", n)
			require.Equal(t, []string{n.String()}, strs(again))
			require.Equal(t, b.HostIP.Unmap(), again[0].HostIP)
			require.Equal(t, netip.Addr{}, again[0].IP)
		}
	})
}
