package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/enginetest"
)

// spot is a host or a container: it sends what it likes, and keeps the tokens
// of all packets that its kernel delivers, those to ports where nobody listens
// too. A raw socket sees a packet behind every rule, whatever protocols the
// kernel has.
type spot struct {
	name   string
	ns     string // path of its network namespace
	iface  string // by which it sends
	router net.HardwareAddr
	addr4  netip.Addr
	addr6  netip.Addr

	own net.HardwareAddr

	mu  sync.Mutex // guards below
	got map[token]bool
}

// listen makes the spot's raw sockets. Their goroutines end with the test.
func (p *spot) listen(t *testing.T) {
	p.got = map[token]bool{}
	var readers sync.WaitGroup
	var conns []net.PacketConn
	t.Cleanup(func() {
		for _, c := range conns {
			_ = c.Close()
		}
		readers.Wait()
	})
	require.NoError(t, p.do(func() error {
		if p.iface != "" {
			link, err := net.InterfaceByName(p.iface)
			if err != nil {
				return err
			}
			p.own = link.HardwareAddr
		}
		for _, family := range []string{"ip4", "ip6"} {
			for _, pr := range protos {
				c, err := net.ListenPacket(fmt.Sprintf("%s:%d", family, pr), "")
				if err != nil {
					return err
				}
				conns = append(conns, c)
				readers.Go(func() { p.receive(pr, c) })
			}
		}
		return nil
	}), "listen at %s", p.name)
}

func (p *spot) receive(pr proto, c net.PacketConn) {
	buf := make([]byte, 65536)
	for {
		n, _, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if t, ok := carries(pr, buf[:n]); err == nil && ok {
			p.mu.Lock()
			p.got[t] = true
			p.mu.Unlock()
		}
	}
}

func (p *spot) has(t token) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got[t]
}

func (p *spot) addr(is4 bool) netip.Addr {
	if is4 {
		return p.addr4
	}
	return p.addr6
}

// do runs f in the spot's network.
func (p *spot) do(f func() error) error { return enginetest.InNetwork(p.ns, f) }

// sendFrames sends packets to the spot's router, whatever its own routing would
// do with them. All spots send on one CPU, where a frame goes through the wires
// and bridges of this kernel before the next: what is sent later arrives later.
func (p *spot) sendFrames(packets [][]byte) error {
	return p.do(func() error {
		var cpus, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &cpus); err != nil {
			return err
		}
		for cpu := 0; one.Count() == 0; cpu++ {
			if cpus.IsSet(cpu) {
				one.Set(cpu)
			}
		}
		if err := unix.SchedSetaffinity(0, &one); err != nil { // of this thread, which ends with f
			return err
		}
		link, err := net.InterfaceByName(p.iface)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{Ifindex: link.Index, Halen: 6}
		for _, packet := range packets {
			if err := unix.Sendto(fd, ethernet(p.router, p.own, packet), 0, to); err != nil {
				return fmt.Errorf("send from %s: %w", p.name, err)
			}
		}
		return nil
	})
}

// clientPort is the last source port that was used; each is used once, so that
// conntrack knows none of them.
var clientPort atomic.Uint32

func newClientPort() uint16 { return uint16(10_000 + clientPort.Add(1)%20_000) }

// tcpWait is how long a client waits for a TCP connection that may not come.
const tcpWait = time.Second

// dial sends a token as a program would: a TCP connection is made before it,
// and whatever hinders that is as good as silence.
func (p *spot) dial(pr proto, dst netip.AddrPort, t token) {
	var c net.Conn
	err := p.do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), tcpWait)
		defer cancel()
		var d net.Dialer
		var err error
		switch pr {
		case tcp:
			c, err = d.DialContext(ctx, "tcp", dst.String())
		case udp:
			c, err = d.DialContext(ctx, "udp", dst.String())
		case sctp:
			network := "ip4:132"
			if dst.Addr().Is6() {
				network = "ip6:132"
			}
			c, err = d.DialContext(ctx, network, dst.Addr().String())
		}
		return err
	})
	if err != nil {
		return // refused, unreachable or nobody there: nothing was sent
	}
	defer c.Close()
	b := t.words()
	if pr == sctp {
		b = segment(sctp, netip.AddrPortFrom(dst.Addr(), newClientPort()), dst, t)
	}
	_, _ = c.Write(b) // the same
}
