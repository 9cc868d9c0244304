package systemd_test

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/systemd"
	"github.com/portolan/portolan/internal/systemdtest"
)

// BenchmarkPut is what storing costs who publishes a thousand ports.
func BenchmarkPut(b *testing.B) {
	m := systemdtest.New(b)
	s := open(b, m)
	var all []systemd.Socket
	for range 1000 {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		require.NoError(b, err)
		defer c.Close()
		all = append(all, bound{c})
	}
	for b.Loop() {
		s.Put(all)
		b.StopTimer()
		s.Remove(all)
		b.StartTimer()
	}
}

// BenchmarkRemove is what a container with one port costs where so many others are
// stored.
func BenchmarkRemove(b *testing.B) {
	s := open(b, systemdtest.New(b))
	var all []systemd.Socket
	for range 4000 {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		require.NoError(b, err)
		defer c.Close()
		all = append(all, bound{c})
	}
	s.Put(all)
	for b.Loop() {
		s.Remove(all[1234:1235])
		b.StopTimer()
		s.Put(all[1234:1235])
		b.StartTimer()
	}
}
