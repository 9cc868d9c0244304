package portmap

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/netnstest"
)

func newAllocator(t testing.TB, p Proto) *Allocator {
	t.Helper()
	a := NewAllocator(p, NewSockets(nil), "/proc/sys/net")
	before := OpenSockets(t)
	t.Cleanup(func() {
		assert.Empty(t, a.held, "the index at the end")
		assert.Equal(t, before, OpenSockets(t), "sockets at the end")
	})
	return a
}

// take reserves m for a sandbox until the test ends.
func take(t testing.TB, a *Allocator, m Mapping, sandbox string) []lease {
	t.Helper()
	leases, err := a.Exact(m, sandbox)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, a.Release(leases, sandbox)) })
	return leases
}

func TestAllocatorExact(t *testing.T) {
	for _, p := range []Proto{TCP, UDP} {
		t.Run(p.String(), func(t *testing.T) {
			a := newAllocator(t, p)
			before := OpenSockets(t)
			leases, err := a.Exact(ports(p, "", 8000, 8009, 80), "s1")
			require.NoError(t, err)
			require.Len(t, leases, 10)
			for i, l := range leases {
				require.Equal(t, one(p, "", uint16(8000+i), uint16(80+i)), l.Mapping)
			}
			RequireSockets(t, before+10)
			require.NoError(t, a.Release(leases, "s1"))
			RequireSockets(t, before)
			leases, err = a.Exact(ports(p, "", 8000, 8009, 80), "s2")
			require.NoError(t, err, "what was given back is free")
			require.NoError(t, a.Release(leases, "s2"))
		})
	}
}

// TestAllocatorHeld asks for ports that another endpoint, or a socket, has.
func TestAllocatorHeld(t *testing.T) {
	netnstest.Bridge(t, "held0", "198.51.100.1/24", "2001:db8:1::1/64")
	tests := []struct {
		name       string
		held, asks Mapping
		free       bool
	}{
		{"same", one(UDP, "", 53, 53), one(UDP, "", 53, 54), false},
		{"wildcard, then an address", one(UDP, "", 53, 53), one(UDP, "198.51.100.1", 53, 53), false},
		{"an address, then wildcard", one(UDP, "198.51.100.1", 53, 53), one(UDP, "", 53, 53), false},
		{"wildcard, then an IPv6 address", one(TCP, "", 53, 53), one(TCP, "2001:db8:1::1", 53, 53), false},
		{"an IPv6 address, then wildcard", one(TCP, "::1", 53, 53), one(TCP, "", 53, 53), false},
		{"IPv4 wildcard, then an IPv4 address", one(TCP, "0.0.0.0", 53, 53), one(TCP, "127.0.0.53", 53, 53), false},
		{"IPv4 wildcard, then an IPv6 address", one(TCP, "0.0.0.0", 53, 53), one(TCP, "::1", 53, 53), true},
		{"IPv4 wildcard, then IPv6 wildcard", one(UDP, "0.0.0.0", 53, 53), one(UDP, "::", 53, 53), true},
		{"IPv6 wildcard, then both", one(UDP, "::", 53, 53), one(UDP, "", 53, 53), false},
		{"two addresses", one(UDP, "127.0.0.1", 53, 53), one(UDP, "127.0.0.2", 53, 53), true},
		{"TCP beside UDP", one(UDP, "", 53, 53), one(TCP, "", 53, 53), true},
		{"SCTP beside UDP", one(UDP, "", 53, 53), one(SCTP, "", 53, 53), true},
		{"SCTP twice", one(SCTP, "", 53, 53), one(SCTP, "", 53, 53), false},
		{"last of a range", ports(UDP, "", 8000, 8009, 80), one(UDP, "", 8009, 53), false},
		{"around a range", ports(UDP, "", 8004, 8005, 80), ports(UDP, "", 8000, 8009, 8000), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			holder := newAllocator(t, tt.held.Proto)
			asker := holder
			if tt.asks.Proto != tt.held.Proto {
				asker = newAllocator(t, tt.asks.Proto)
			}
			take(t, holder, tt.held, "s1")
			before := OpenSockets(t)
			leases, err := asker.Exact(tt.asks, "s2")
			if tt.free {
				require.NoError(t, err)
				require.NoError(t, asker.Release(leases, "s2"))
			} else {
				require.ErrorIs(t, err, ErrPortInUse)
				require.ErrorContains(t, err, "another container")
			}
			RequireSockets(t, before)

			if tt.held.Proto == SCTP {
				return // without kernel sockets the allocator alone knows
			}
			// The same, with the port in the hands of another program.
			stranger := NewAllocator(tt.asks.Proto, NewSockets(nil), "/proc/sys/net")
			leases, err = stranger.Exact(tt.asks, "s2")
			if tt.free {
				require.NoError(t, err)
				require.NoError(t, stranger.Release(leases, "s2"))
			} else {
				require.ErrorIs(t, err, ErrPortInUse)
				require.ErrorContains(t, err, "(pid ")
			}
			RequireSockets(t, before)
			require.Empty(t, stranger.held)
		})
	}
}

// TestAllocatorAllOrNothing has some ports of a range held by others.
func TestAllocatorAllOrNothing(t *testing.T) {
	a := newAllocator(t, UDP)
	HoldPort(t, "udp4", "127.0.0.1:8003")
	HoldPort(t, "udp4", "127.0.0.1:8004")
	HoldPort(t, "udp4", "127.0.0.1:8008")
	before := OpenSockets(t)
	_, err := a.Exact(ports(UDP, "", 8000, 8009, 80), "s1")
	require.ErrorIs(t, err, ErrPortInUse)
	require.ErrorContains(t, err, "udp port 8003 (and 2 more of 8000-8009->80-89/udp) is in use by ")
	RequireSockets(t, before)
	require.Empty(t, a.held)

	for _, port := range []uint16{9002, 9004} {
		take(t, a, one(UDP, "127.0.0.1", port, 1), "s1")
	}
	before = OpenSockets(t)
	_, err = a.Exact(ports(UDP, "", 9000, 9009, 80), "s2")
	require.ErrorIs(t, err, ErrPortInUse)
	require.EqualError(t, err, "udp port 9002 (and 1 more of 9000-9009->80-89/udp) is in use by another container on 127.0.0.1; "+
		"choose another host port or stop that container")
	RequireSockets(t, before)
	take(t, a, ports(UDP, "", 9005, 9009, 80), "s2")
}

// TestAllocatorHolder reads what a person is told who asked for a port that a
// process has.
func TestAllocatorHolder(t *testing.T) {
	netnstest.Bridge(t, "held0", "198.51.100.1/24", "198.51.100.7/24", "2001:db8:1::1/64")
	tests := []struct {
		name, network, at string
		asks              Mapping
		want              string
	}{
		{"a resolver", "udp4", "127.0.0.53:53", one(UDP, "", 53, 53),
			"udp port 53 is in use by sleep (pid %d) on 127.0.0.53; publish on one address: -p 198.51.100.1:53:53/udp"},
		{"IPv6", "udp6", "[::1]:53", one(UDP, "", 53, 1053),
			"udp port 53 is in use by sleep (pid %d) on ::1; publish on one address: -p [2001:db8:1::1]:53:1053/udp"},
		{"a range", "tcp4", "127.0.0.53:53", ports(TCP, "0.0.0.0", 52, 54, 152),
			"tcp port 53 is in use by sleep (pid %d) on 127.0.0.53; publish on one address: -p 198.51.100.1:52-54:152-154/tcp"},
		{"on the address that would be proposed", "tcp4", "198.51.100.1:80", one(TCP, "", 80, 80),
			"tcp port 80 is in use by sleep (pid %d) on 198.51.100.1; publish on one address: -p 198.51.100.7:80:80/tcp"},
		{"a wildcard, against an address", "udp4", "0.0.0.0:53", one(UDP, "198.51.100.1", 53, 53),
			"udp port 53 is in use by sleep (pid %d) on 0.0.0.0; choose another host port or stop that process"},
		{"both families, against an address", "udp", ":53", one(UDP, "198.51.100.1", 53, 53),
			"udp port 53 is in use by sleep (pid %d) on ::; choose another host port or stop that process"},
		{"both families, against both", "tcp", ":53", one(TCP, "", 53, 53),
			"tcp port 53 is in use by sleep (pid %d) on ::; choose another host port or stop that process"},
		{"the same address", "tcp4", "198.51.100.1:80", one(TCP, "198.51.100.1", 80, 80),
			"tcp port 80 is in use by sleep (pid %d) on 198.51.100.1; choose another host port or stop that process"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAllocator(t, tt.asks.Proto)
			pid := HoldPortElsewhere(t, tt.network, tt.at)
			_, err := a.Exact(tt.asks, "s1")
			require.ErrorIs(t, err, ErrPortInUse)
			require.EqualError(t, err, fmt.Sprintf(tt.want, pid))
		})
	}
}

// TestAllocatorClientsPort asks for the port that an outgoing connection of this
// host has.
func TestAllocatorClientsPort(t *testing.T) {
	a := newAllocator(t, TCP)
	server := take(t, a, one(TCP, "127.0.0.1", 8080, 80), "s1")[0]
	require.NoError(t, server.Open())
	c, err := dialFrom(t, "127.0.0.1:9090", "127.0.0.1:8080")
	require.NoError(t, err)
	defer c.Close()
	_, err = a.Exact(one(TCP, "", 9090, 80), "s2")
	require.ErrorIs(t, err, ErrPortInUse)
	require.ErrorContains(t, err, fmt.Sprintf("portmap.test (pid %d) on 127.0.0.1", unix.Getpid()))
}

func TestAllocatorNotOurAddress(t *testing.T) {
	netnstest.Bridge(t, "held0", "198.51.100.1/24", "2001:db8:1::1/64")
	for want, m := range map[string]Mapping{
		"publish 203.0.113.9:53->53/udp: host address 203.0.113.9 is not an address of this host (": one(UDP, "203.0.113.9", 53, 53),
		"publish on one that is: -p 198.51.100.1:53:53/udp":                                         one(UDP, "203.0.113.9", 53, 53),
		"publish on one that is: -p [2001:db8:1::1]:80-89:8000-8009/tcp":                            ports(TCP, "2001:db8::99", 80, 89, 8000),
	} {
		a := newAllocator(t, m.Proto)
		before := OpenSockets(t)
		_, err := a.Exact(m, "s1")
		require.ErrorIs(t, err, unix.EADDRNOTAVAIL)
		require.NotErrorIs(t, err, ErrPortInUse)
		require.ErrorContains(t, err, want)
		RequireSockets(t, before)
		_, err = a.Any([]Mapping{{Proto: m.Proto, HostIP: m.HostIP, Port: 80}}, "s1")
		require.ErrorIs(t, err, unix.EADDRNOTAVAIL, "any port")
	}
}

// TestAllocatorRange takes the lowest free port, the same of all addresses.
func TestAllocatorRange(t *testing.T) {
	a := newAllocator(t, UDP)
	both := []Mapping{ports(UDP, "127.0.0.1", 8000, 8004, 53), ports(UDP, "127.0.0.2", 8000, 8004, 53)}
	HoldPort(t, "udp4", "127.0.0.2:8000")
	take(t, a, one(UDP, "127.0.0.1", 8002, 1), "s0")
	for i, want := range []uint16{8001, 8003, 8004} {
		before := OpenSockets(t)
		sandbox := fmt.Sprint(i)
		leases, err := a.Any(both, sandbox)
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, a.Release(leases, sandbox)) })
		require.Len(t, leases, 2)
		require.Equal(t, one(UDP, "127.0.0.1", want, 53), leases[0].Mapping)
		require.Equal(t, one(UDP, "127.0.0.2", want, 53), leases[1].Mapping)
		RequireSockets(t, before+2)
	}
	before := OpenSockets(t)
	_, err := a.Any(both, "s9")
	require.ErrorIs(t, err, ErrPortInUse)
	require.ErrorContains(t, err, "no udp port of 8000-8004 is free for container port 53: udp port 8000 is in use by ")
	RequireSockets(t, before)
}

func TestAllocatorEphemeral(t *testing.T) {
	netnstest.Sysctl(t, "ipv4/ip_local_reserved_ports", "40001,40003-40004")
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40006")
	a := newAllocator(t, TCP)
	anyPort := []Mapping{{Proto: TCP, Port: 80}}
	got := map[uint16][]lease{}
	for range 4 {
		leases, err := a.Any(anyPort, "s1")
		require.NoError(t, err)
		require.Equal(t, uint16(80), leases[0].Port)
		got[leases[0].HostPort] = leases
	}
	t.Cleanup(func() {
		for _, leases := range got {
			assert.NoError(t, a.Release(leases, "s1"))
		}
	})
	require.Len(t, got, 4)
	for _, port := range []uint16{40000, 40002, 40005, 40006} {
		require.Contains(t, got, port)
	}
	before := OpenSockets(t)
	_, err := a.Any(anyPort, "s1")
	require.ErrorIs(t, err, ErrPortInUse)
	require.ErrorContains(t, err, "no tcp port of the ephemeral range 40000-40006 is free")
	RequireSockets(t, before)

	// The range is read at each call.
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "50000 50001")
	leases, err := a.Any(anyPort, "s1")
	require.NoError(t, err)
	first := leases[0].HostPort
	require.Contains(t, []uint16{50000, 50001}, first)
	require.NoError(t, a.Release(leases, "s1"))
	leases, err = a.Any(anyPort, "s1")
	require.NoError(t, err)
	require.NotEqual(t, first, leases[0].HostPort, "a port that was just given back is the last to be handed out again")
	require.NoError(t, a.Release(leases, "s1"))

	HoldPort(t, "tcp6", "[::1]:50000")
	for range 3 {
		leases, err := a.Any(anyPort, "s1")
		require.NoError(t, err)
		require.Equal(t, uint16(50001), leases[0].HostPort)
		require.NoError(t, a.Release(leases, "s1"))
	}
}

func TestEphemeralPorts(t *testing.T) {
	for s, want := range map[string]portRange{
		"":               ianaDynamic,
		"x":              ianaDynamic,
		"32768\t60999\n": {32768, 60999},
		"0 9":            ianaDynamic,
		"9 8":            ianaDynamic,
		"9 65536":        ianaDynamic,
		"65535 65535":    {65535, 65535},
	} {
		require.Equal(t, want, localPortRange(s), "%q", s)
	}
	require.Equal(t, portRange{49153, 65535}, ianaDynamic)
	for s, want := range map[string][]portRange{
		"":                  nil,
		"8080":              {{8080, 8080}},
		"8080,9000-9010":    {{8080, 8080}, {9000, 9010}},
		"x,9000-,70000,1-2": {{1, 2}},
	} {
		require.Equal(t, want, reservedPorts(s), "%q", s)
	}
	r, reserved := ephemeralPorts(t.TempDir())
	require.Equal(t, ianaDynamic, r, "no sysctls at all")
	require.Empty(t, reserved)
}

// TestAllocatorConcurrent has many sandboxes want the same ports at once.
func TestAllocatorConcurrent(t *testing.T) {
	netnstest.Sysctl(t, "ipv4/ip_local_port_range", "40000 40063")
	a := newAllocator(t, UDP)
	var mu sync.Mutex
	owner := map[uint16]string{}
	claim := func(leases []lease, sandbox string) {
		mu.Lock()
		defer mu.Unlock()
		for _, l := range leases {
			assert.Empty(t, owner[l.HostPort], "port %d is handed out twice", l.HostPort)
			owner[l.HostPort] = sandbox
		}
	}
	release := func(leases []lease, sandbox string) {
		mu.Lock()
		for _, l := range leases {
			delete(owner, l.HostPort)
		}
		mu.Unlock()
		assert.NoError(t, a.Release(leases, sandbox))
	}
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			sandbox := fmt.Sprint("s", g)
			for range 40 {
				var leases []lease
				var err error
				switch first := uint16(40000 + rand.IntN(60)); rand.IntN(3) {
				case 0:
					leases, err = a.Exact(ports(UDP, "", first, first+3, 80), sandbox)
				case 1:
					leases, err = a.Any([]Mapping{ports(UDP, "", first, 40063, 80)}, sandbox)
				default:
					leases, err = a.Any([]Mapping{{Proto: UDP, Port: 80}}, sandbox)
				}
				if err != nil {
					if !errors.Is(err, ErrPortInUse) {
						assert.NoError(t, err)
					}
					continue
				}
				claim(leases, sandbox)
				release(leases, sandbox)
			}
		})
	}
	wg.Wait()
}
