package portmaptest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	// answerWait is how long a client waits for an answer that must come.
	answerWait = 20 * time.Second
	// silenceWait is how long it waits for one that must not come.
	silenceWait = 300 * time.Millisecond
)

// place is where a socket is opened: a Host, or here.
type place interface{ Do(f func() error) error }

// here is the Docker host, the tests' own namespace.
type here struct{}

func (here) Do(f func() error) error { return f() }

// server answers everybody with the address that it saw as the client's.
type server struct {
	mu   sync.Mutex // guards below
	from []netip.AddrPort
}

// seen are the clients so far.
func (s *server) seen() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]netip.AddrPort(nil), s.from...)
}

func (s *server) answer(from net.Addr) []byte {
	var ap netip.AddrPort
	switch a := from.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from = append(s.from, ap)
	return []byte(ap.String())
}

// serve opens a server at the ports given, each as "udp:53", on every address
// of at, or on the one given. It ends with the test.
func serve(t *testing.T, at place, addr netip.Addr, ports ...string) *server {
	t.Helper()
	s := &server{}
	host := ""
	if addr.IsValid() {
		host = addr.String()
	}
	for _, p := range ports {
		proto, port := p[:3], p[4:]
		require.NoError(t, at.Do(func() error {
			if proto == "udp" {
				return s.serveUDP(t, net.JoinHostPort(host, port))
			}
			return s.serveTCP(t, net.JoinHostPort(host, port))
		}), "serve %s", p)
	}
	return s
}

func (s *server) serveUDP(t *testing.T, addr string) error {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	end := owned(t, c)
	go func() {
		defer close(end)
		buf := make([]byte, 2048)
		for {
			_, from, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteTo(s.answer(from), from)
			}
		}
	}()
	return nil
}

func (s *server) serveTCP(t *testing.T, addr string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	end := owned(t, ln)
	go func() {
		defer close(end)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(s.answer(c.RemoteAddr()))
			_ = c.Close()
		}
	}()
	return nil
}

// owned closes c at the end of the test and waits for who reads from it.
func owned(t *testing.T, c io.Closer) chan struct{} {
	end := make(chan struct{})
	t.Cleanup(func() {
		_ = c.Close()
		<-end
	})
	return end
}

// clientPort is the source port of the last question, and the identifier of the
// last ICMP echo. The kernel chooses them at random, so that among a thousand
// questions some are of a flow that conntrack still knows from before the rules
// changed, and go where it went: to a closed port of this host, or to the
// container that had the port. Clearing that up is the Publisher's work, not a
// Mapper's.
var clientPort atomic.Uint32

// newClientPort is one that no question had in the last minutes.
func newClientPort() uint16 {
	const first, count = 32_768, 28_000
	return uint16(first + clientPort.Add(1)%count)
}

// dial opens a client's socket, with a source port that is new.
func dial(network string, to netip.AddrPort, wait time.Duration) (c net.Conn, err error) {
	for {
		port := int(newClientPort())
		d := net.Dialer{Timeout: wait, LocalAddr: &net.UDPAddr{Port: port}}
		if network == "tcp" {
			d.LocalAddr = &net.TCPAddr{Port: port}
		}
		if c, err = d.Dial(network, to.String()); !errors.Is(err, unix.EADDRINUSE) {
			return c, err
		}
	}
}

// send sends one datagram from a place.
func send(from place, to netip.AddrPort) error {
	return from.Do(func() error {
		c, err := dial("udp", to, answerWait)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("?"))
		return err
	})
}

// ask sends one request from a place and returns the client address that the
// server saw, and the client's own.
func ask(from place, network string, to netip.AddrPort, wait time.Duration) (seen, own netip.AddrPort, err error) {
	err = from.Do(func() error {
		c, err := dial(network, to, wait)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("?")); err != nil {
			return err
		}
		buf := make([]byte, 128)
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		if seen, err = netip.ParseAddrPort(string(buf[:n])); err != nil {
			return err
		}
		own, err = netip.ParseAddrPort(c.LocalAddr().String())
		return err
	})
	return seen, own, err
}

// probe is one question that somebody asks.
type probe struct {
	who     string
	from    place
	network string
	to      netip.AddrPort
}

func (p probe) String() string { return fmt.Sprintf("%s to %s/%s", p.who, p.to, p.network) }

// probes are questions over UDP and TCP to one port of several addresses.
func probes(who string, from place, port uint16, to ...netip.Addr) []probe {
	var ps []probe
	for _, a := range to {
		for _, network := range []string{"udp", "tcp"} {
			ps = append(ps, probe{who, from, network, netip.AddrPortFrom(a, port)})
		}
	}
	return ps
}

// requireAnswered wants an answer to every probe and, where source is given,
// that the server saw that address; without, the client's own.
func requireAnswered(t *testing.T, source netip.Addr, ps ...probe) {
	t.Helper()
	for _, p := range ps {
		seen, own, err := ask(p.from, p.network, p.to, answerWait)
		require.NoError(t, err, "%s", p)
		want := source
		if !want.IsValid() {
			want = own.Addr()
		}
		require.Equal(t, want, seen.Addr(), "%s: the client's address as the server sees it", p)
	}
}

// requireReached wants an answer to every probe, whatever the server saw.
func requireReached(t *testing.T, ps ...probe) {
	t.Helper()
	for _, p := range ps {
		_, _, err := ask(p.from, p.network, p.to, answerWait)
		require.NoError(t, err, "%s", p)
	}
}

// requireRefused wants every probe refused, at once and with a message: silence
// costs a client its patience.
func requireRefused(t *testing.T, ps ...probe) {
	t.Helper()
	for _, p := range ps {
		_, _, err := ask(p.from, p.network, p.to, answerWait)
		require.ErrorIs(t, err, unix.ECONNREFUSED, "%s", p)
	}
}

// requireSilent wants no answer to any of the probes, which are asked all at
// once.
func requireSilent(t *testing.T, ps ...probe) {
	t.Helper()
	errs := make([]error, len(ps))
	var wg sync.WaitGroup
	for i, p := range ps {
		wg.Go(func() { _, _, errs[i] = ask(p.from, p.network, p.to, silenceWait) })
	}
	wg.Wait()
	for i, p := range ps {
		require.Error(t, errs[i], "%s must not be answered", p)
	}
}
