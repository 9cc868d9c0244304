package main

import (
	"context"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

// long is more than any answer on this machine takes.
const long = 10 * time.Second

func TestParsePorts(t *testing.T) {
	tests := []struct {
		list string
		want []int
		err  string
	}{
		{"", nil, ""},
		{"53", []int{53}, ""},
		{"80,7000-7002", []int{80, 7000, 7001, 7002}, ""},
		{"65534-65535", []int{65534, 65535}, ""},
		{"65536", nil, "value out of range"},
		{"20-10", nil, "ends before it begins"},
		{"a", nil, "invalid syntax"},
		{"1-b", nil, "invalid syntax"},
	}
	for _, tt := range tests {
		t.Run(tt.list, func(t *testing.T) {
			got, err := parsePorts(tt.list)
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestEchoAnswersSend(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			addr := serveEcho(t, network)
			c, err := sender{network: network, addr: addr, timeout: long}.open(t.Context())
			require.NoError(t, err)
			defer c.Close()
			for _, payload := range []string{"hello", "", "with blanks"} {
				answer, err := c.ask(payload, long)
				require.NoError(t, err)
				assert.Equal(t, "7000 "+c.LocalAddr().String()+" "+payload+" me", answer)
			}
		})
	}
}

func TestSendHasASourceAddress(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			addr := serveEcho(t, network)
			c, err := sender{network: network, addr: addr, bind: "127.0.0.9", timeout: long}.open(t.Context())
			require.NoError(t, err)
			defer c.Close()
			answer, err := c.ask("hello", long)
			require.NoError(t, err)
			assert.True(t, strings.HasPrefix(answer, "7000 127.0.0.9:"), answer)
		})
	}
}

func TestBulkComesBack(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			addr := serve(t, network, echoer{raw: true})
			s := sender{network: network, addr: addr, noFragments: true, timeout: long}
			require.NoError(t, s.bulk(t.Context(), 65507))
			require.NoError(t, s.bulk(t.Context(), 0))
			s.addr, s.timeout = serveEcho(t, network), 50*time.Millisecond
			require.Error(t, s.bulk(t.Context(), 5), "it says more than that, or waits for the end of a line")
		})
	}
}

// serveEcho echoes on a free port, as if it were port 7000, until the test ends.
func serveEcho(t *testing.T, network string) string {
	t.Helper()
	return serve(t, network, echoer{suffix: " me"})
}

func serve(t *testing.T, network string, e echoer) string {
	t.Helper()
	if network == "tcp" {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { ln.Close() })
		go e.serveTCP(ln, 7000)
		return ln.Addr().String()
	}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	go e.serveUDP(c, 7000)
	return c.LocalAddr().String()
}

func TestSendNeedsAnAnswer(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	err = send(t.Context(), []string{"-timeout", "50ms", "udp", silent.LocalAddr().String()})
	require.ErrorContains(t, err, "timeout")
	err = send(t.Context(), []string{"-count", "2", "-interval", "10ms", "-until", "never", "udp", silent.LocalAddr().String()})
	require.ErrorContains(t, err, `no answer had "never"`)
	require.ErrorContains(t, send(t.Context(), []string{"sctp", "127.0.0.1:1"}), `unknown protocol "sctp"`)
}

func TestDNS(t *testing.T) {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer udp.Close()
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	require.NoError(t, err)
	defer tcp.Close()
	go serveDNSDatagrams(udp)
	go serveDNSStreams(tcp)

	ask := func(network, name string, kind dnsmessage.Type) ([]string, error) {
		return lookup(context.Background(), network, udp.LocalAddr().String(), name, kind, long)
	}
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			got, err := ask(network, "www.portolan.test", dnsmessage.TypeA)
			require.NoError(t, err)
			assert.Equal(t, []string{"192.0.2.53"}, got)
			got, err = ask(network, "WWW.Portolan.Test.", dnsmessage.TypeAAAA)
			require.NoError(t, err)
			assert.Equal(t, []string{"2001:db8::53"}, got)

			got, err = ask(network, "whoami.portolan.test", dnsmessage.TypeTXT)
			require.NoError(t, err)
			require.Len(t, got, 1)
			client, err := netip.ParseAddrPort(got[0])
			require.NoError(t, err)
			assert.Equal(t, "127.0.0.1", client.Addr().String())

			_, err = ask(network, "www.portolan.test", dnsmessage.TypeTXT)
			require.ErrorContains(t, err, "no such record")
			_, err = ask(network, "www.notportolan.test", dnsmessage.TypeA)
			require.ErrorContains(t, err, "NameError")
		})
	}
	_, err = answerDNS([]byte("no DNS at all"), udp.LocalAddr())
	require.Error(t, err)
}

func TestWeb(t *testing.T) {
	s := httptest.NewServer(webHandler())
	defer s.Close()
	page := func(path string) string {
		t.Helper()
		resp, err := s.Client().Get(s.URL + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return strconv.Itoa(resp.StatusCode) + " " + string(body)
	}
	assert.Regexp(t, `^200 hello from .* to 127\.0\.0\.1:\d+\n$`, page("/"))
	assert.Equal(t, "200 word", page("/echo?word"))
	assert.Contains(t, page("/other"), "404")
}
