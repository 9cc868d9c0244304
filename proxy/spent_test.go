package proxy

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Clients that close first leave a TIME_WAIT at a port of ours each. After so many
// the same ports are used again, in that order; no more are taken from the host.
func TestTCPUsesSpentPortsAgain(t *testing.T) {
	// Of different families: the clients' own TIME_WAIT hold ports as well.
	for _, p := range []path{{"tcp", "::1", "::1", "127.0.0.1"}, {"tcp", "127.0.0.1", "127.0.0.1", "::1"}} {
		t.Run(p.String(), func(t *testing.T) {
			noLeaks(t)
			ln := listenTCP(t, "tcp", p.backend)
			proxy := startTCP(t, p, to(addrPort(ln.Addr())))
			once := func() (port uint16) {
				client := dialTCP(t, addrPort(proxy.Addr()))
				backend := acceptTCP(t, ln)
				write(t, client, "ask")
				requireRead(t, backend, "ask")
				write(t, backend, "answer")
				requireRead(t, client, "answer")
				port = addrPort(backend.RemoteAddr()).Port()
				require.NoError(t, client.Close())
				requireEnd(t, backend)
				require.NoError(t, backend.Close())
				eventually(t, func() bool { return liveTCP(proxy) == 0 }, "the connection does not end")
				return port
			}
			var first []uint16
			for range spentEnough {
				first = append(first, once())
			}
			again := 0
			for i := range 300 {
				if once() == first[i] {
					again++
				}
			}
			// Others have taken some; that the kernel chose one of them in this
			// place would be a wonder.
			assert.Greater(t, again, 20)
			proxy.hold(func() { assert.LessOrEqual(t, proxy.loop.spent.n, spentEnough) })
		})
	}
}

// Where the backend closes first the TIME_WAIT is its own, and a reset leaves none.
func TestTCPSpendsNoPortWithoutNeed(t *testing.T) {
	noLeaks(t)
	ln := listenTCP(t, "tcp", "127.0.0.1")
	proxy := startTCP(t, localPath("tcp"), to(addrPort(ln.Addr())))
	for _, end := range []func(client, backend interface{ Close() error }){
		func(client, backend interface{ Close() error }) {
			require.NoError(t, backend.Close())
			eventually(t, func() (ended bool) {
				proxy.hold(func() {
					for c := range proxy.conns {
						ended = c.backend.ended
					}
				})
				return ended
			}, "the backend's end is not passed on")
			require.NoError(t, client.Close())
		},
		func(client, _ interface{ Close() error }) {
			reset(t, client.(interface {
				Close() error
				SetLinger(int) error
			}))
		},
	} {
		client := dialTCP(t, addrPort(proxy.Addr()))
		backend := acceptTCP(t, ln)
		end(client, backend)
		eventually(t, func() bool { return liveTCP(proxy) == 0 }, "the connection does not end")
		proxy.hold(func() { assert.Zero(t, proxy.loop.spent.n) })
	}
}

func TestSpentPorts(t *testing.T) {
	backend, other := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.1:81")
	name := func(i int) sockname {
		s, _, err := newSockname(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), uint16(i)))
		require.NoError(t, err)
		return s
	}
	var s spent
	now := time.Now()
	_, ok := s.take(backend, now)
	require.False(t, ok)
	for i := range spentEnough + 1 {
		s.put(backend, name(i), now)
		now = now.Add(time.Millisecond)
	}
	_, ok = s.take(other, now)
	require.False(t, ok, "another backend")
	for i := range 2 {
		from, ok := s.take(backend, now)
		require.True(t, ok)
		require.Equal(t, name(i), from)
	}
	_, ok = s.take(backend, now)
	require.False(t, ok, "too few wait")
	require.Equal(t, spentEnough-1, s.n)

	s.put(backend, name(1), now)
	_, ok = s.take(backend, now.Add(spentFor-time.Millisecond))
	require.False(t, ok, "the first are over")
	require.Equal(t, 1, s.n, "what is over stays")

	for i := range 2 * spentMost {
		s.put(other, name(i), now)
	}
	require.Equal(t, spentMost, s.n)
	s.put(backend, name(7), now.Add(spentFor))
	require.Equal(t, 1, s.n, "there is room once the others are over")
}
