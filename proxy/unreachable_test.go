package proxy

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A connected client hears of it, at its next read as with a server that it
// talks to itself.
func TestUDPTellsClientsThatNobodyListens(t *testing.T) {
	eachPath(t, "udp", func(t *testing.T, p path) {
		backend := startEcho(t, p.backend)
		proxy := startUDP(t, p, to(backend.addr()), UDPConfig{})
		front := at(p.client, proxy.Addr())
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(front))
		require.NoError(t, err)
		defer c.Close()
		ask := func() error {
			require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
			if _, err := c.Write([]byte("question")); err != nil {
				return err
			}
			_, err := c.Read(make([]byte, 64))
			return err
		}
		require.NoError(t, ask())
		backend.stop()
		require.ErrorIs(t, ask(), unix.ECONNREFUSED)
		require.ErrorIs(t, ask(), unix.ECONNREFUSED)
	})
}

func TestUDPDoesNotAnswerGroupsWithErrors(t *testing.T) {
	noLeaks(t)
	backend := startEcho(t, "127.0.0.1")
	proxy := startUDP(t, localPath("udp4"), to(backend.addr()), UDPConfig{})
	for _, local := range []string{"127.0.0.1", "224.0.0.251", "198.51.100.255"} {
		proxy.mu.Lock()
		l := proxy.loop
		f := &flow{proxy: proxy, key: flowKey{client: netip.MustParseAddrPort("127.0.0.1:9"), local: netip.AddrPortFrom(netip.MustParseAddr(local), 9)}}
		if local != "127.0.0.1" {
			f.key.ifindex = 1
		}
		f.refused(unix.ECONNREFUSED)
		opened := l.unreachable.socket4.opened
		l.unreachable.close()
		proxy.mu.Unlock()
		require.Equal(t, local == "127.0.0.1", opened, local)
	}
}
