package portmap_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
)

// fakeHooks keeps in memory what hooks would do.
type fakeHooks struct {
	mu   sync.Mutex // guards below
	set  map[string]string
	fail error // of Set
}

func (h *fakeHooks) Set(proto uint8, host netip.Addr, first, last uint16, to netip.AddrPort, via netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := fmt.Sprintf("%s [%s]:%d-%d", portmap.Proto(proto), host, first, last)
	delete(h.set, key)
	if h.fail != nil {
		return h.fail
	}
	h.set[key] = to.String()
	if via.IsValid() {
		h.set[key] += " or " + via.String()
	}
	return nil
}

func (h *fakeHooks) Delete(proto uint8, host netip.Addr, first, last uint16) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.set, fmt.Sprintf("%s [%s]:%d-%d", portmap.Proto(proto), host, first, last))
	return nil
}

func (h *fakeHooks) list() (out []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, to := range h.set {
		out = append(out, k+" to "+to)
	}
	slices.Sort(out)
	return out
}

func newHooksRig(t *testing.T) (*portmap.Publisher, *fakeHooks) {
	t.Helper()
	netnstest.Bridge(t, "plbr0", "172.20.0.1/16", "fd20::1/64")
	h := &fakeHooks{set: map[string]string{}}
	fake := portmaptest.NewFake()
	require.NoError(t, fake.AddNetwork(rigNet))
	p := portmap.NewPublisher(portmap.PublisherConfig{Mapper: fake, Hooks: h})
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p, h
}

func TestHooksAreTold(t *testing.T) {
	routed6 := target("e1", 2)
	routed6.Routed6 = true
	routed4 := target("e1", 2)
	routed4.Routed4 = true
	tests := []struct {
		name string
		to   portmap.Target
		spec []string
		want []string
	}{
		{"both families", target("e1", 2), []string{"8080:80", "53:53/udp"},
			[]string{"tcp [::]:8080-8080 to [fd20::2]:80", "udp [::]:53-53 to [fd20::2]:53 or fd20::1"}},
		{"a range", target("e1", 2), []string{"10000-10099:20000-20099/udp"},
			[]string{"udp [::]:10000-10099 to [fd20::2]:20000 or fd20::1"}},
		{"a container with IPv4 alone", only4(target("e1", 2)), []string{"8080:80", "53:53/udp"},
			[]string{"tcp [::]:8080-8080 to 172.20.0.2:80", "udp [::]:53-53 to 172.20.0.2:53 or 127.0.0.1"}},
		{"one host address", target("e1", 2), []string{"[::1]:8080:80", "[fd20::1]:53:53/udp", "[::1]:53:53/udp"},
			[]string{"tcp [::1]:8080-8080 to [fd20::2]:80", "udp [::1]:53-53 to [fd20::2]:53", "udp [fd20::1]:53-53 to [fd20::2]:53"}},
		{"IPv6 alone", target("e1", 2), []string{"[::]:53:53/udp"},
			[]string{"udp [::]:53-53 to [fd20::2]:53 or fd20::1"}},
		{"IPv6 alone of a container with IPv4 alone", only4(target("e1", 2)), []string{"[::]:53:53/udp"},
			[]string{"udp [::]:53-53 to 172.20.0.2:53"}},
		{"IPv4 alone", target("e1", 2), []string{"0.0.0.0:8080:80", "127.0.0.1:53:53/udp"}, nil},
		{"SCTP", target("e1", 2), []string{"8080:80/sctp"}, nil},
		{"IPv6 is routed", routed6, []string{"8080:80"}, nil},
		{"IPv4 is routed", routed4, []string{"8080:80", "53:53/udp"},
			[]string{"tcp [::]:8080-8080 to [fd20::2]:80", "udp [::]:53-53 to [fd20::2]:53 or fd20::1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, h := newHooksRig(t)
			_, err := p.Publish("s1", tt.to, bindings(t, tt.spec...), recordNothing)
			require.NoError(t, err)
			require.Equal(t, tt.want, h.list())
			require.NoError(t, p.Unpublish("e1"))
			require.Empty(t, h.list())
		})
	}
}

func TestHooksFollow(t *testing.T) {
	p, h := newHooksRig(t)
	publish := func(sandbox string, to portmap.Target, specs ...string) {
		t.Helper()
		_, err := p.Publish(sandbox, to, bindings(t, specs...), recordNothing)
		require.NoError(t, err)
	}
	publish("s1", target("e1", 2), "8080:80", "8081:81")
	publish("s1", target("e1", 2), "8080:80")
	require.Equal(t, []string{"tcp [::]:8080-8080 to [fd20::2]:80"}, h.list(), "fewer ports")
	publish("s1", target("e2", 3), "8080:80")
	require.Equal(t, []string{"tcp [::]:8080-8080 to [fd20::3]:80"}, h.list(), "another gateway")
	require.NoError(t, p.Unpublish("e1"))
	require.Equal(t, []string{"tcp [::]:8080-8080 to [fd20::3]:80"}, h.list(), "late")
	require.NoError(t, p.Release("s1"))
	require.Empty(t, h.list())

	publish("s2", target("e1", 2), "8080:80")
	require.NoError(t, p.Close())
	require.NotEmpty(t, h.list(), "they are closed by themselves")
}

func TestHooksAfterARestart(t *testing.T) {
	p, h := newHooksRig(t)
	require.NoError(t, p.Restore([]portmap.Network{rigNet}, []portmap.Run{{
		Sandbox: "s1", Publication: portmap.Publication{Target: target("e1", 2), Mappings: portmaptest.Mappings(t, "8080->80")},
	}}, nil))
	require.Equal(t, []string{"tcp [::]:8080-8080 to [fd20::2]:80"}, h.list())
}

// An error of the hooks is the proxy's to make good, not the container's.
func TestHooksFail(t *testing.T) {
	p, h := newHooksRig(t)
	h.fail = errors.New("no memory")
	for range 2 {
		_, err := p.Publish("s1", target("e1", 2), bindings(t, "8080:80"), recordNothing)
		require.NoError(t, err)
		require.Empty(t, h.list())
	}
	h.fail = nil
	_, err := p.Publish("s1", target("e1", 2), bindings(t, "8080:80"), recordNothing)
	require.NoError(t, err)
	require.NotEmpty(t, h.list(), "tried again")
}

// TestHooksGoPastTheProxy looks at the client's own address, which is ::1 for
// whom the proxy serves.
func TestHooksGoPastTheProxy(t *testing.T) {
	w := newTown(t)
	if w.hooks == nil {
		t.Skip("this host has no hooks, or they are off")
	}
	say(t, w.c2, 80, "two")
	for _, tt := range []struct {
		to    portmap.Target
		local string
	}{{target("e1", 2), "fd20::1"}, {only4(target("e1", 2)), "172.20.0.1"}} {
		w.publish(t, "s1", tt.to, "8080:80", "8080:80/udp")
		for _, to := range []string{"[::1]:8080", "[2001:db8:1::1]:8080"} {
			c, err := net.Dial("tcp", to)
			require.NoError(t, err)
			got, err := question(c, answerWait)
			require.NoError(t, err)
			require.Equal(t, "two", got)
			local, _, _ := net.SplitHostPort(c.LocalAddr().String())
			require.Equal(t, tt.local, local)
			require.Equal(t, to, c.RemoteAddr().String())
			require.NoError(t, c.Close())
		}
	}
	require.NoError(t, w.Release("s1"))
	requireRefused(t, here{}, "[::1]:8080", "[2001:db8:1::1]:8080")
}
