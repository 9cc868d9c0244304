package portmap_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
)

// rig is a Publisher on a Mapper in memory, with real sockets.
type rig struct {
	*portmap.Publisher
	t    *testing.T
	fake *portmaptest.Fake
}

var rigNet = portmap.Network{
	ID: "n", Bridge: "plbr0",
	Subnet4: netip.MustParsePrefix("172.20.0.0/16"), Gateway4: netip.MustParseAddr("172.20.0.1"),
	Subnet6: netip.MustParsePrefix("fd20::/64"), Gateway6: netip.MustParseAddr("fd20::1"),
}

func newRig(t *testing.T, name func(string) string) *rig {
	t.Helper()
	before := portmap.OpenSockets(t)
	r := &rig{t: t, fake: portmaptest.NewFake()}
	require.NoError(t, r.fake.AddNetwork(rigNet))
	r.Publisher = portmap.NewPublisher(portmap.PublisherConfig{Mapper: r.fake, Name: name})
	t.Cleanup(func() {
		assert.NoError(t, r.Close())
		assert.Equal(t, before, portmap.OpenSockets(t), "sockets after Close")
	})
	return r
}

// target is an endpoint of the rig's network, by its last number.
func target(endpoint string, n int) portmap.Target {
	return portmap.Target{
		Endpoint: endpoint, Network: rigNet.ID,
		IPv4: netip.MustParseAddr(fmt.Sprintf("172.20.0.%d", n)), IPv6: netip.MustParseAddr(fmt.Sprintf("fd20::%d", n)),
	}
}

func bindings(t testing.TB, specs ...string) []portmap.PortBinding {
	t.Helper()
	bs, err := portmap.ParsePorts(specs...)
	require.NoError(t, err)
	return bs
}

func recordNothing([]portmap.Mapping) (func() error, error) {
	return func() error { return nil }, nil
}

// publish publishes for a sandbox and returns what that is, as `portolan ls`
// writes it.
func (r *rig) publish(sandbox string, to portmap.Target, specs ...string) []string {
	r.t.Helper()
	ms, err := r.Publish(sandbox, to, bindings(r.t, specs...), recordNothing)
	require.NoError(r.t, err)
	return texts(ms)
}

func texts(ms []portmap.Mapping) []string {
	ss := make([]string, len(ms))
	for i, m := range ms {
		ss[i] = m.String()
	}
	return ss
}

// requireMapped wants exactly these in the Mapper, as endpoint and mappings.
func (r *rig) requireMapped(want ...string) {
	r.t.Helper()
	got := []string{}
	for _, p := range r.fake.Publications() {
		if len(p.Mappings) > 0 {
			got = append(got, p.Endpoint+" "+strings.Join(texts(p.Mappings), " "))
		}
	}
	require.ElementsMatch(r.t, want, got)
}

// requireFree wants a port not to be held by anybody.
func requireFree(t *testing.T, network, at string) {
	t.Helper()
	c := portmap.HoldPort(t, network, at)
	require.NoError(t, c.Close())
}

// requireHeld wants a port to be held by somebody.
func requireHeld(t *testing.T, network, at string) {
	t.Helper()
	c, err := net.ListenPacket(network, at)
	if err == nil {
		_ = c.Close()
	}
	require.ErrorIs(t, err, unix.EADDRINUSE)
}

func TestPublishOrder(t *testing.T) {
	r := newRig(t, nil)
	var steps []string
	r.fake.Fail = func(op string, p portmap.Publication) error {
		steps = append(steps, op+" "+strings.Join(texts(p.Mappings), " "))
		return nil
	}
	record := func(ms []portmap.Mapping) (func() error, error) {
		requireHeld(t, "udp4", "127.0.0.1:5300")
		steps = append(steps, "record "+strings.Join(texts(ms), " "))
		return nil, nil
	}
	ms, err := r.Publish("s1", target("e1", 2), bindings(t, "5300-5301:53-54/udp"), record)
	require.NoError(t, err)
	require.Equal(t, []string{"5300-5301->53-54/udp"}, texts(ms))
	require.Equal(t, []string{"record 5300-5301->53-54/udp", "Map 5300-5301->53-54/udp"}, steps)
}

// TestPublishUndo has each step fail, for a new sandbox and for one that
// publishes already.
func TestPublishUndo(t *testing.T) {
	cause := errors.New("disk full")
	for _, step := range []string{"record", "Map"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t, nil)
			var recorded []string
			failing := true
			record := func(ms []portmap.Mapping) (func() error, error) {
				recorded = append(recorded, strings.Join(texts(ms), " "))
				if failing && step == "record" {
					return nil, cause
				}
				return func() error {
					requireHeld(t, "udp4", "127.0.0.1:5300")
					recorded = append(recorded, "undone")
					return nil
				}, nil
			}
			r.fake.Fail = func(op string, _ portmap.Publication) error {
				if failing && op == step {
					return cause
				}
				return nil
			}
			before := portmap.OpenSockets(t)
			_, err := r.Publish("s1", target("e1", 2), bindings(t, "5300:53/udp", "5300:53"), record)
			require.ErrorIs(t, err, cause)
			portmap.RequireSockets(t, before)
			requireFree(t, "udp", ":5300")
			requireFree(t, "tcp", ":5300")
			r.requireMapped()
			if step == "Map" {
				require.Equal(t, []string{"5300->53 5300->53/udp", "undone"}, recorded)
			}

			failing = false
			r.publish("s1", target("e1", 2), "5300:53/udp")
			failing, recorded = true, nil
			before = portmap.OpenSockets(t)
			_, err = r.Publish("s1", target("e1", 2), bindings(t, "5300:53/udp", "5301:53/udp"), record)
			require.ErrorIs(t, err, cause)
			portmap.RequireSockets(t, before, "what was published before stays")
			requireHeld(t, "udp4", "127.0.0.1:5300")
			requireFree(t, "udp", ":5301")
			r.requireMapped("e1 5300->53/udp")
			if step == "Map" {
				require.Equal(t, []string{"5300->53/udp 5301->53/udp", "undone"}, recorded)
			}
		})
	}
}

// TestPublishConflict is refused by reserving: nothing is recorded or mapped.
func TestPublishConflict(t *testing.T) {
	r := newRig(t, func(endpoint string) string {
		if endpoint == "e1" {
			return "container web"
		}
		return ""
	})
	r.publish("s1", target("e1", 2), "8000-8004:80-84")
	r.publish("s2", target("endpoint-of-the-second", 3), "127.0.0.1:9000:80")
	before := portmap.OpenSockets(t)
	untouched := func([]portmap.Mapping) (func() error, error) { t.Error("recorded"); return nil, nil }
	tests := []struct{ spec, want string }{
		{"8001:80", "tcp port 8001 is in use by container web (endpoint e1) on 0.0.0.0; choose another host port or stop that container"},
		{"8003-8009:80-86", "tcp port 8003 (and 1 more of 8003-8009->80-86) is in use by container web (endpoint e1) on 0.0.0.0; choose another host port or stop that container"},
		{"8003-8004:80", "no tcp port of 8003-8004 is free for container port 80: tcp port 8003 is in use by container web (endpoint e1) on 0.0.0.0; choose another host port or stop that container"},
		{"[::1]:8000:80", "tcp port 8000 is in use by container web (endpoint e1) on ::; choose another host port or stop that container"},
		{"9000:80", "tcp port 9000 is in use by endpoint endpoint-of- on 127.0.0.1; choose another host port or stop that container"},
	}
	for _, tt := range tests {
		_, err := r.Publish("s3", target("e3", 4), bindings(t, "7000:70", tt.spec), untouched)
		require.ErrorIs(t, err, portmap.ErrPortInUse, tt.spec)
		require.EqualError(t, err, tt.want)
		portmap.RequireSockets(t, before)
	}
	require.NoError(t, r.Unpublish("e1"))
	_, err := r.Publish("s3", target("e3", 4), bindings(t, "8001:80"), untouched)
	require.ErrorIs(t, err, portmap.ErrPortInUse, "the sandbox holds it still")
	require.ErrorContains(t, err, "in use by another container")
	r.requireMapped("endpoint-of-the-second 127.0.0.1:9000->80")
}

// TestPublishTwiceTheSame asks for one host port twice in one call.
func TestPublishTwiceTheSame(t *testing.T) {
	r := newRig(t, nil)
	for _, specs := range [][]string{
		{"8080:80", "8080:81"},
		{"8080:80", "8080:80"},
		{"8080:80", "127.0.0.1:8080:80"},
		{"8000-8009:8000-8009/udp", "8005:53/udp"},
	} {
		before := portmap.OpenSockets(t)
		_, err := r.Publish("s1", target("e1", 2), bindings(t, specs...), recordNothing)
		require.ErrorIs(t, err, portmap.ErrPortInUse, specs)
		require.ErrorContains(t, err, "is asked for twice by this container")
		portmap.RequireSockets(t, before)
	}
	require.Equal(t, []string{"127.0.0.1:8080->80", "127.0.0.2:8080->81"},
		r.publish("s1", target("e1", 2), "127.0.0.2:8080:81", "127.0.0.1:8080:80"))
}

func TestPublishBadPort(t *testing.T) {
	r := newRig(t, nil)
	before := portmap.OpenSockets(t)
	bad := portmap.PortBinding{Proto: portmap.TCP, HostPort: 80}
	_, err := r.Publish("s1", target("e1", 2), append(bindings(t, "8080:80"), bad), recordNothing)
	require.ErrorIs(t, err, portmap.ErrBadPort)
	portmap.RequireSockets(t, before)
}

// TestPublishAgain is what the engine does after a restart: the same bindings, in
// another order. Everything keeps its number.
func TestPublishAgain(t *testing.T) {
	r := newRig(t, nil)
	specs := []string{"80", "8080:80", "7000-7009:80", "127.0.0.1::53/udp", "127.0.0.2::53/udp", "9000-9009:9000-9009/udp", "5000/sctp"}
	bs := bindings(t, specs...)
	first, err := r.Publish("s1", target("e1", 2), bs, recordNothing)
	require.NoError(t, err)
	require.Contains(t, texts(first), "8080->80")
	require.Contains(t, texts(first), "7000->80")
	require.Contains(t, texts(first), "9000-9009->9000-9009/udp")
	before := portmap.OpenSockets(t)
	for i := range bs {
		again := append(append([]portmap.PortBinding{}, bs[i:]...), bs[:i]...)
		ms, err := r.Publish("s1", target("e1", 2), again, recordNothing)
		require.NoError(t, err)
		require.Equal(t, first, ms)
		portmap.RequireSockets(t, before)
	}
	require.Len(t, r.fake.Publications(), 1)

	require.Equal(t, []string{"8080->80"}, r.publish("s1", target("e1", 2), "8080:80"))
	requireFree(t, "udp", ":9000")
	requireFree(t, "tcp", ":7000")
	require.Empty(t, r.publish("s1", target("e1", 2)))
	requireFree(t, "tcp", ":8080")
	r.requireMapped()
	require.NoError(t, r.Unpublish("e1"))
}

// TestPublishOneNumber asks for any port on several addresses.
func TestPublishOneNumber(t *testing.T) {
	r := newRig(t, nil)
	ms, err := r.Publish("s1", target("e1", 2), bindings(t, "0.0.0.0::53/udp", "[::]::53/udp", "127.0.0.1:7000-7009:80", "127.0.0.2:7000-7009:80"), recordNothing)
	require.NoError(t, err)
	require.Len(t, ms, 4)
	require.Equal(t, []string{"127.0.0.1:7000->80", "127.0.0.2:7000->80"}, texts(ms[:2]))
	require.Equal(t, ms[2].HostPort, ms[3].HostPort)
	require.NotEqual(t, ms[2].HostIP, ms[3].HostIP)
	require.NoError(t, r.Release("s1"))

	portmap.HoldPort(t, "tcp4", "127.0.0.2:7000")
	require.Equal(t, []string{"127.0.0.1:7001->80", "127.0.0.2:7001->80"},
		r.publish("s1", target("e1", 2), "127.0.0.1:7000-7009:80", "127.0.0.2:7000-7009:80"))

	// Where one address includes the other there cannot be one number.
	ms, err = r.Publish("s2", target("e2", 3), bindings(t, "80", "127.0.0.1::80"), recordNothing)
	require.NoError(t, err)
	require.Len(t, ms, 2)
	require.NotEqual(t, ms[0].HostPort, ms[1].HostPort)
}

// TestGatewayMoves moves the gateway between the endpoints of one sandbox and
// back, with an Unpublish before, as engines send it, and without.
func TestGatewayMoves(t *testing.T) {
	for _, unpublish := range []bool{true, false} {
		t.Run(fmt.Sprintf("unpublish %t", unpublish), func(t *testing.T) {
			r := newRig(t, nil)
			specs := []string{"80", "53/udp", "9000:9000/udp"}
			first := r.publish("s1", target("e1", 2), specs...)
			before := portmap.OpenSockets(t)
			for i, from := range []string{"e1", "e2", "e1", "e3"} {
				to := []string{"e2", "e1", "e3", "e1"}[i]
				if unpublish {
					require.NoError(t, r.Unpublish(from))
					r.requireMapped()
					// Another driver's endpoint of this container may bind
					// them now; another sandbox of ours may not.
					requireFree(t, "udp", ":9000")
					_, err := r.Publish("s2", target("e9", 9), bindings(t, "9000:9000/udp"), recordNothing)
					require.ErrorIs(t, err, portmap.ErrPortInUse)
				}
				require.Equal(t, first, r.publish("s1", target(to, 2+i), specs...))
				r.requireMapped(to + " " + strings.Join(first, " "))
				portmap.RequireSockets(t, before)
				require.NoError(t, r.Unpublish(from), "a late unpublish")
				r.requireMapped(to + " " + strings.Join(first, " "))
			}
			require.NoError(t, r.Release("s1"))
			r.requireMapped()
			requireFree(t, "udp", ":9000")
		})
	}
}

// TestGatewayComesBack to a port that somebody took meanwhile, and again when it
// is free: the number is still the sandbox's.
func TestGatewayComesBack(t *testing.T) {
	r := newRig(t, nil)
	r.publish("s1", target("e1", 2), "9000-9001:9000-9001/udp")
	require.NoError(t, r.Unpublish("e1"))
	c, err := net.ListenPacket("udp", ":9001")
	require.NoError(t, err)
	_, err = r.Publish("s1", target("e1", 2), bindings(t, "9000-9001:9000-9001/udp"), recordNothing)
	require.ErrorIs(t, err, portmap.ErrPortInUse)
	r.requireMapped()
	requireFree(t, "udp", ":9000")
	require.NoError(t, c.Close())
	require.Equal(t, []string{"9000-9001->9000-9001/udp"}, r.publish("s1", target("e1", 2), "9000-9001:9000-9001/udp"))
	require.NoError(t, r.Release("s1"))
	requireFree(t, "udp", ":9000")
}

// TestGatewayMoveFails leaves the ports where they were.
func TestGatewayMoveFails(t *testing.T) {
	r := newRig(t, nil)
	first := r.publish("s1", target("e1", 2), "80", "9000:9000/udp")
	cause := errors.New("no buffer space")
	r.fake.Fail = func(op string, p portmap.Publication) error {
		if op == "Map" && p.Endpoint == "e2" {
			return cause
		}
		return nil
	}
	var recorded [][]string
	_, err := r.Publish("s1", target("e2", 3), bindings(t, "80", "9000:9000/udp"), func(ms []portmap.Mapping) (func() error, error) {
		recorded = append(recorded, texts(ms))
		return func() error { recorded = append(recorded, []string{"undone"}); return nil }, nil
	})
	require.ErrorIs(t, err, cause)
	require.Equal(t, [][]string{first, {"undone"}}, recorded)
	r.requireMapped("e1 " + strings.Join(first, " "))
	r.fake.Fail = nil
	require.NoError(t, r.Unpublish("e2"), "it publishes nothing")
	r.requireMapped("e1 " + strings.Join(first, " "))
	require.NoError(t, r.Unpublish("e1"))
	r.requireMapped()
}

func TestRelease(t *testing.T) {
	r := newRig(t, nil)
	before := portmap.OpenSockets(t)
	r.publish("s1", target("e1", 2), "8080:80", "53:53/udp", "5000:5000/sctp")
	require.NoError(t, r.Release("s1"), "without an Unpublish before")
	r.requireMapped()
	portmap.RequireSockets(t, before)
	require.NoError(t, r.Release("s1"), "again")
	require.NoError(t, r.Release("nobody"))
	require.NoError(t, r.Unpublish("nobody"))
	require.Equal(t, []string{"5000->5000/sctp"}, r.publish("s2", target("e2", 3), "5000:5000/sctp"))
}

// TestReleaseGoesOn: rules that cannot be removed keep no port from the next one.
func TestReleaseGoesOn(t *testing.T) {
	r := newRig(t, nil)
	before := portmap.OpenSockets(t)
	r.publish("s1", target("e1", 2), "8080:80", "53:53/udp")
	cause := errors.New("netlink: no")
	r.fake.Fail = func(op string, _ portmap.Publication) error {
		if op == "Unmap" {
			return cause
		}
		return nil
	}
	require.ErrorIs(t, r.Release("s1"), cause)
	portmap.RequireSockets(t, before)
	r.fake.Fail = nil
	require.Equal(t, []string{"8080->80"}, r.publish("s2", target("e2", 3), "8080:80"))
}

// TestRouted publishes on networks that translate nothing.
func TestRouted(t *testing.T) {
	r := newRig(t, nil)
	before := portmap.OpenSockets(t)
	routed := target("e1", 2)
	routed.Routed4, routed.Routed6 = true, true
	specs := []string{"8080:80", "5300:53/udp", "81", "54/udp", "[::1]:55:55/udp", "7000-7009:92"}
	ms := r.publish("s1", routed, specs...)
	require.Contains(t, ms, "5300->53/udp")
	require.Contains(t, ms, "81->81", "any port is the container's own")
	portmap.RequireSockets(t, before, "nothing is reserved")
	require.Equal(t, ms, r.publish("s1", routed, specs...))
	require.Equal(t, ms, func() []string { // another container may have the same
		other := routed
		other.Endpoint = "e9"
		return r.publish("s9", other, specs...)
	}())
	require.NoError(t, r.Release("s9"))

	// The gateway moves to a network that translates.
	ms = r.publish("s1", target("e2", 3), specs...)
	require.Contains(t, ms, "5300->53/udp")
	require.Contains(t, ms, "8080->80")
	require.NotContains(t, ms, "81->81")
	portmap.RequireSockets(t, before+6)
	require.Equal(t, ms, r.publish("s1", routed, specs...), "and back, with the ports that it has")
	require.NoError(t, r.Release("s1"))
	portmap.RequireSockets(t, before)

	routed.Routed6 = false
	require.Equal(t, []string{"5300->53/udp"}, r.publish("s1", routed, "5300:53/udp"))
	requireHeld(t, "udp6", "[::1]:5300")
	requireFree(t, "udp4", ":5300")
}

func TestRestore(t *testing.T) {
	r := newRig(t, nil)
	stranger := portmap.HoldPort(t, "udp4", "127.0.0.1:9003")
	run := func(sandbox string, to portmap.Target, notation ...string) portmap.Run {
		return portmap.Run{Sandbox: sandbox, Publication: portmap.Publication{Target: to, Mappings: portmaptest.Mappings(t, notation...)}}
	}
	require.NoError(t, r.Restore([]portmap.Network{rigNet}, []portmap.Run{
		run("s1", target("e1", 2), "8080->80", "9000-9009->9000-9009/udp"),
		run("s2", target("e2", 3), "127.0.0.1:9003->53/udp"),
		run("s3", target("e3", 4), "40000->80", "5000->5000/sctp"),
		run("s3", target("e4", 5)),
		run("s1", target("e9", 2), "8080->80"), // of a record that an earlier version could leave
	}, nil))
	r.requireMapped("e1 8080->80 9000-9002->9000-9002/udp 9004-9009->9004-9009/udp", "e3 40000->80 5000->5000/sctp")
	require.Equal(t, []string{"9003->9003/udp"}, texts(r.Lost("e1")))
	require.Equal(t, []string{"127.0.0.1:9003->53/udp"}, texts(r.Lost("e2")))
	require.Empty(t, r.Lost("e3"))
	require.Empty(t, r.Lost("nobody"))
	requireHeld(t, "udp4", "127.0.0.1:9004")

	require.NoError(t, r.Retry())
	require.Equal(t, []string{"9003->9003/udp"}, texts(r.Lost("e1")), "it is still taken")
	require.NoError(t, stranger.Close())
	require.NoError(t, r.Unpublish("e1"))
	require.Empty(t, r.Lost("e1"), "what does not publish waits for nothing")
	require.NoError(t, r.Retry())
	r.requireMapped("e2 127.0.0.1:9003->53/udp", "e3 40000->80 5000->5000/sctp")
	require.Empty(t, r.Lost("e2"))
	require.NoError(t, r.Retry(), "nothing is lost")

	require.Equal(t, []string{"40000->80", "5000->5000/sctp"}, r.publish("s3", target("e4", 5), "80", "5000:5000/sctp"), "an ephemeral number survives")
	require.NoError(t, r.Release("s3"))
	requireFree(t, "tcp", ":40000")
}

// TestRestoreParked: the numbers of a sandbox that publishes nothing when the
// process ends are its own after it, too, and others may bind them.
func TestRestoreParked(t *testing.T) {
	r := newRig(t, nil)
	before := portmap.OpenSockets(t)
	parked := portmaptest.Mappings(t, "40000->80", "40001->81", "40010->53/udp", "127.0.0.1:40020->90")
	require.NoError(t, r.Restore([]portmap.Network{rigNet}, []portmap.Run{
		{Sandbox: "s1", Publication: portmap.Publication{Target: target("e1", 2)}, Parked: parked},
		{Sandbox: "s2", Publication: portmap.Publication{Target: target("e2", 3), Mappings: portmaptest.Mappings(t, "40001->80")}},
		{Sandbox: "s2", Publication: portmap.Publication{Target: target("e5", 3)}, Parked: portmaptest.Mappings(t, "41000->80")},
	}, nil))
	r.requireMapped("e2 40001->80")
	requireFree(t, "tcp", ":40000")
	requireFree(t, "udp", ":40010")
	requireFree(t, "tcp", ":41000")
	portmap.RequireSockets(t, before+1)

	_, err := r.Publish("s3", target("e3", 4), bindings(t, "40000:80"), recordNothing)
	require.ErrorIs(t, err, portmap.ErrPortInUse)
	got := r.publish("s1", target("e1", 2), "80", "81", "53/udp", "127.0.0.1::90")
	require.Contains(t, got, "40000->80")
	require.Contains(t, got, "40010->53/udp")
	require.Contains(t, got, "127.0.0.1:40020->90")
	require.NotContains(t, got, "40001->81", "another's")
	require.NoError(t, r.Release("s1"))
	require.NoError(t, r.Release("s2"))
	portmap.RequireSockets(t, before)
}

// TestRestoreRetries gets a port back from the middle of a range, and keeps what
// cannot be mapped.
func TestRestoreRetries(t *testing.T) {
	r := newRig(t, nil)
	stranger := portmap.HoldPort(t, "udp4", "127.0.0.1:9003")
	require.NoError(t, r.Restore([]portmap.Network{rigNet}, []portmap.Run{{
		Sandbox: "s1", Publication: portmap.Publication{Target: target("e1", 2), Mappings: portmaptest.Mappings(t, "9000-9009->9000-9009/udp")},
	}}, nil))
	require.NoError(t, stranger.Close())
	cause := errors.New("no buffer space")
	r.fake.Fail = func(string, portmap.Publication) error { return cause }
	before := portmap.OpenSockets(t)
	require.ErrorIs(t, r.Retry(), cause)
	portmap.RequireSockets(t, before)
	require.Equal(t, []string{"9003->9003/udp"}, texts(r.Lost("e1")))
	r.fake.Fail = nil
	require.NoError(t, r.Retry())
	require.Empty(t, r.Lost("e1"))
	r.requireMapped("e1 9000-9009->9000-9009/udp")
	require.NoError(t, r.Release("s1"))
	portmap.RequireSockets(t, before-9)
}

func TestRestoreFails(t *testing.T) {
	r := newRig(t, nil)
	cause := errors.New("no nftables")
	r.fake.Fail = func(string, portmap.Publication) error { return cause }
	require.ErrorIs(t, r.Restore(nil, nil, nil), cause)
}

// TestClose leaves rules and frees ports; calls that come late return.
func TestClose(t *testing.T) {
	r := newRig(t, nil)
	before := portmap.OpenSockets(t)
	r.publish("s1", target("e1", 2), "8080:80", "53:53/udp")
	r.publish("s2", target("e2", 3), "8081:80")
	require.NoError(t, r.Unpublish("e2"))
	require.NoError(t, r.Close())
	portmap.RequireSockets(t, before)
	r.requireMapped("e1 8080->80 53->53/udp")
	require.NoError(t, r.Close(), "twice")
	require.NoError(t, r.Release("s2"))
	r.requireMapped("e1 8080->80 53->53/udp")
	require.NoError(t, r.Unpublish("e1"))
	require.NoError(t, r.Release("s1"))
	r.requireMapped()
}

// TestPublisherConcurrent has sandboxes come, move and go at once, some of which
// want the same port.
func TestPublisherConcurrent(t *testing.T) {
	r := newRig(t, func(endpoint string) string { return "container " + endpoint })
	before := portmap.OpenSockets(t)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			sandbox, a, b := fmt.Sprint("s", g), target(fmt.Sprint("a", g), 10+g), target(fmt.Sprint("b", g), 30+g)
			for i := range 6 {
				specs := []string{fmt.Sprintf("%d:80", 8000+g), "53/udp", "9000-9003:90"}
				if i%3 == 0 {
					specs = append(specs, "7000:70/udp")
				}
				bs, err := portmap.ParsePorts(specs...)
				assert.NoError(t, err)
				for _, to := range []portmap.Target{a, b, a} {
					if _, err := r.Publish(sandbox, to, bs, recordNothing); err != nil {
						assert.ErrorIs(t, err, portmap.ErrPortInUse)
						assert.NotEmpty(t, err.Error())
					}
				}
				assert.NoError(t, r.Retry())
				assert.NoError(t, r.Unpublish(b.Endpoint))
				assert.NoError(t, r.Unpublish(a.Endpoint))
				assert.NoError(t, r.Release(sandbox))
			}
		})
	}
	wg.Wait()
	r.requireMapped()
	portmap.RequireSockets(t, before)
}
