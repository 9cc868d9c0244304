package main

import (
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A stream ends when it is told to and counts what came back; what is lost, or
// comes twice, is an error.
func TestStream(t *testing.T) {
	t.Run("tcp", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer ln.Close()
		go echoer{raw: true}.serveTCP(ln, 0)
		assert.NoError(t, stream(t.Context(), []string{"-for", "100ms", "tcp", ln.Addr().String()}))
	})
	for name, answer := range map[string]func(c net.PacketConn, n int, b []byte, to net.Addr){
		"":                  func(c net.PacketConn, _ int, b []byte, to net.Addr) { _, _ = c.WriteTo(b, to) },
		"came back instead": func(c net.PacketConn, n int, b []byte, to net.Addr) { b[7] += byte(n / 5); _, _ = c.WriteTo(b, to) },
		"i/o timeout": func(c net.PacketConn, n int, b []byte, to net.Addr) {
			if n < 5 {
				_, _ = c.WriteTo(b, to)
			}
		},
		"7 bytes came back": func(c net.PacketConn, _ int, b []byte, to net.Addr) { _, _ = c.WriteTo(b[:7], to) },
		"message 4 came back": func(c net.PacketConn, n int, b []byte, to net.Addr) {
			_, _ = c.WriteTo(b, to)
			if n == 4 {
				_, _ = c.WriteTo(b, to)
			}
		},
	} {
		t.Run("udp "+name, func(t *testing.T) {
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			require.NoError(t, err)
			defer c.Close()
			go func() {
				buf := make([]byte, 64)
				for n := 0; ; n++ {
					size, from, err := c.ReadFrom(buf)
					if err != nil {
						return
					}
					answer(c, n, buf[:size], from)
				}
			}()
			length := "1m" // an error comes before
			if name == "" {
				length = "100ms"
			}
			err = stream(t.Context(), []string{"-for", length, "-timeout", "200ms", "udp", c.LocalAddr().String()})
			if name == "" {
				assert.NoError(t, err)
			} else {
				assert.ErrorContains(t, err, name)
			}
		})
	}
}
