package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/portolan/portolan/internal/enginetest"
)

// soakPath is one way to a container that is there from the beginning to the
// end.
type soakPath struct {
	place
	networks []string
	ports    []int
	kernel   bool // no daemon is needed for it

	udp, tcp, bytes, excused atomic.Int64
}

func (s *soak) soakPaths() (paths []*soakPath) {
	both := []string{"udp", "tcp"}
	for _, p := range s.places() {
		paths = append(paths, &soakPath{place: p, networks: both, ports: []int{5300}, kernel: p.addr != "::1"})
	}
	four := place{"own IPv6 to IPv4 only", s.engine.Host, enginetest.HostIPv6, enginetest.HostIPv6}
	long := []int{30000, 31535}
	outside, inside := s.places()[0], s.places()[4]
	outside.name += ", long range"
	inside.name += ", long range"
	return append(paths,
		&soakPath{place: four, networks: both, ports: []int{5301}},
		&soakPath{place: outside, networks: []string{"udp"}, ports: long, kernel: true},
		&soakPath{place: inside, networks: []string{"udp"}, ports: long},
	)
}

// flowsPerSecond is how many new flows each path sees.
const flowsPerSecond = 50

// traffic opens one flow after the other: mostly UDP, TCP now and then, and
// rarely a long TCP connection.
func (s *soak) traffic(ctx context.Context, p *soakPath) {
	err := p.ns.Do(func() error {
		tick := time.NewTicker(time.Second / flowsPerSecond)
		defer tick.Stop()
		for i := 1; ctx.Err() == nil; i++ {
			network, size := "udp", 1+i%1200
			if i%5 == 0 && len(p.networks) > 1 {
				network = "tcp"
				if i%500 == 0 {
					size = 1 << 20
				}
			}
			excuse := s.excuses(p)
			err := p.flow(network, size, 5*time.Second)
			s.judge(p, network, excuse, err)
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
		return nil
	})
	if err != nil {
		s.failed("%s: %v", p.name, err)
	}
}

// excuses says, when it is called later, whether something was going on since
// that a path suffers from.
func (s *soak) excuses(p *soakPath) func() bool {
	away, creates := s.away.now(), s.creates.now()
	return func() bool {
		forwarded4 := p.ns == s.engine.Peer && p.addr == enginetest.HostIPv4
		return !p.kernel && s.away.since(away) || forwarded4 && s.creates.since(creates)
	}
}

// judge notes an error that has no excuse, and says whether to go on.
func (s *soak) judge(p *soakPath, what string, excused func() bool, err error) bool {
	_, isWrong := errors.AsType[wrongAnswer](err)
	switch {
	case err == nil:
	case !isWrong && excused():
		p.excused.Add(1)
	default:
		s.failed("%s, %s: %v", p.name, what, err)
		return false
	}
	return true
}

// wrongAnswer is one that nobody has sent.
type wrongAnswer struct{ text string }

func (e wrongAnswer) Error() string { return e.text }

// flow is a new flow with one message and its answer, on the calling thread.
func (p *soakPath) flow(network string, size int, wait time.Duration) error {
	c, err := p.dial(network, random(p.ports), wait)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := p.exchange(c, size, wait); err != nil {
		return err
	}
	if network == "udp" {
		p.udp.Add(1)
	} else {
		p.tcp.Add(1)
	}
	return nil
}

// exchange sends random bytes to an echo -raw, and takes them back.
func (p *soakPath) exchange(c net.Conn, size int, wait time.Duration) error {
	sent := make([]byte, size)
	_, _ = rand.Read(sent)
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	came := make([]byte, size, size+1)
	if c.LocalAddr().Network() == "udp" {
		if _, err := c.Write(sent); err != nil {
			return err
		}
		n, err := c.Read(came[:size+1])
		if err != nil {
			return err
		}
		came = came[:n]
	} else {
		written := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			written <- err
		}()
		if _, err := io.ReadFull(c, came); err != nil {
			return err
		}
		if err := <-written; err != nil {
			return err
		}
	}
	if !bytes.Equal(sent, came) {
		return wrongAnswer{fmt.Sprintf("%d bytes were sent, and %d others came back", len(sent), len(came))}
	}
	p.bytes.Add(int64(size))
	return nil
}

// stream keeps a TCP connection and a UDP flow for as long as the test takes.
// The kernel carries both, whatever becomes of the daemon.
func (s *soak) stream(ctx context.Context, p *soakPath) {
	defer s.streams.Done()
	for _, network := range p.networks {
		c, err := p.open(network, p.ports[0], 10*time.Second)
		if err != nil {
			s.failed("stream, %s, %s: %v", p.name, network, err)
			return
		}
		s.streams.Add(1)
		go func() {
			defer s.streams.Done()
			defer c.Close() // after the last message, which may be under way when ctx ends
			for n := 1; s.pause(ctx, 100*time.Millisecond); n++ {
				excuse := s.excuses(p)
				err := p.exchange(c, 1000, 10*time.Second)
				if !s.judge(p, fmt.Sprintf("message %d of a long %s flow", n, network), excuse, err) {
					return
				}
			}
		}()
	}
	<-ctx.Done()
}
