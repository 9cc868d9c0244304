// Package load is a client and a server with which a path through the network
// is measured: requests and responses over UDP and TCP, connections, and bulk.
//
// Both are event loops on one thread with as few system calls as there can be,
// so that on a small machine most of the time is the path's.
package load

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Size is how long a request and a response are, in bytes.
const Size = 64

// The ports of a server.
const (
	UDPPort  = 7000 // sends every datagram back
	TCPPort  = 7000 // sends everything back
	SinkPort = 7001 // TCP: reads everything and answers how much that was
)

// Kind is what a client does.
type Kind string

// The kinds.
const (
	UDP     Kind = "udp"      // requests, Window at a time for each client
	TCP     Kind = "tcp"      // requests, one at a time for each client
	Connect Kind = "connect"  // a connection for each request, which the client ends
	Bulk    Kind = "tcp-bulk" // one way, as much as goes
)

// Spec says what a client does.
type Spec struct {
	Kind    Kind
	To      netip.AddrPort
	Clients int           // sockets; 0 is 1
	Window  int           // requests on their way; 0 is 1
	For     time.Duration // how long

	// Unconnected sockets send each datagram to an address of its own (UDP).
	Unconnected bool
	// Orderly clients close their connections, and keep the port in TIME_WAIT;
	// others reset them (Connect). To a loopback address of IPv4 they come from
	// many of those, so that ports do not run out on their side.
	Orderly bool
	// Every is how long the windows are of which the Result has the answers; 0 is
	// none.
	Every time.Duration
}

// Result is what came of it.
type Result struct {
	Answers int64         // right ones
	Lost    int64         // requests without an answer (UDP, Connect)
	Bytes   int64         // that the server has read (bulk)
	Took    time.Duration // of all
	P99     time.Duration // of one answer
	Windows []int64       // answers in each window of Spec.Every
}

// Rate is answers a second.
func (r Result) Rate() float64 { return float64(r.Answers) / r.Took.Seconds() }

// Gbits is gigabits a second.
func (r Result) Gbits() float64 { return float64(r.Bytes) * 8 / 1e9 / r.Took.Seconds() }

// Run is one client's work.
func Run(s Spec) (Result, error) {
	s.Clients, s.Window = max(s.Clients, 1), max(s.Window, 1)
	if s.Kind == Bulk {
		return bulk(s)
	}
	c := client{Spec: s, peers: map[int]*peer{}}
	return c.run()
}

// MarshalArgument is a Spec as one word of a command line.
func (s Spec) MarshalArgument() string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // it has nothing that JSON has not
	}
	return string(text)
}

// UnmarshalArgument is the way back.
func (s *Spec) UnmarshalArgument(word string) error {
	return json.Unmarshal([]byte(word), s)
}

// patience is how long a client waits for an answer before it takes it for lost
// and goes on.
const patience = 200 * time.Millisecond

// peer is one socket of a client.
type peer struct {
	fd       int
	onTheWay int
	turn     uint64    // counts the times that answers were given up
	last     time.Time // of an answer, or of giving up
	begun    time.Time // of the connection
	got      int       // bytes of an answer
	buf      [Size]byte
}

// client is an event loop.
type client struct {
	Spec
	poll    int
	family  int
	to      unix.Sockaddr
	opened  int // sockets so far
	began   time.Time
	peers   map[int]*peer
	result  Result
	latency []time.Duration
	buf     [Size]byte
}

func (c *client) run() (Result, error) {
	var err error
	if c.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return Result{}, fmt.Errorf("epoll: %w", err)
	}
	defer unix.Close(c.poll)
	defer func() {
		for fd, p := range c.peers {
			if c.Kind == Connect && !c.Orderly {
				c.reset(p)
			}
			_ = unix.Close(fd)
		}
	}()
	c.family, c.to = sockaddr(c.To)
	c.began = time.Now()
	for range c.Clients {
		if err := c.open(); err != nil {
			return Result{}, err
		}
	}
	events := make([]unix.EpollEvent, 256)
	checked := c.began
	for {
		n, err := unix.EpollWait(c.poll, events, 50)
		if err != nil && err != unix.EINTR { //nolint:errorlint // an errno
			return Result{}, fmt.Errorf("wait for answers: %w", err)
		}
		now := time.Now()
		if now.Sub(c.began) >= c.For {
			break
		}
		for _, e := range events[:max(n, 0)] {
			if p := c.peers[int(e.Fd)]; p != nil {
				if err := c.ready(p, e.Events, now); err != nil {
					return Result{}, err
				}
			}
		}
		if now.Sub(checked) >= patience/4 {
			checked = now
			c.giveUp(now)
		}
	}
	c.result.Took = time.Since(c.began)
	if len(c.latency) > 0 {
		slices.Sort(c.latency)
		c.result.P99 = c.latency[len(c.latency)*99/100]
	}
	return c.result, nil
}

// open makes one socket and, but for a connection, sends its first requests.
func (c *client) open() error {
	kind := unix.SOCK_STREAM
	if c.Kind == UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(c.family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	if c.Kind != UDP {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err := c.connect(fd); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("connect to %s: %w", c.To, err)
	}
	now := time.Now()
	p := &peer{fd: fd, last: now, begun: now}
	c.peers[fd] = p
	want := uint32(unix.EPOLLIN)
	if c.Kind != UDP {
		want = unix.EPOLLOUT
	}
	if err := unix.EpollCtl(c.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: want, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("watch a socket: %w", err)
	}
	if c.Kind == UDP {
		for range c.Window {
			c.ask(p, now)
		}
	}
	return nil
}

// sources is how many loopback addresses orderly clients come from.
const sources = 200

func (c *client) connect(fd int) error {
	if c.Kind == UDP && c.Unconnected {
		return nil
	}
	c.opened++
	if c.Kind == Connect && c.Orderly && c.family == unix.AF_INET && c.To.Addr().Unmap().IsLoopback() {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		from := [4]byte{127, 0, 1, byte(1 + c.opened%sources)}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from}); err != nil {
			return err
		}
	}
	if err := unix.Connect(fd, c.to); err != nil && err != unix.EINPROGRESS { //nolint:errorlint // an errno
		return err
	}
	return nil
}

// ask sends a request. What does not go now is found missing later.
func (c *client) ask(p *peer, now time.Time) {
	binary.NativeEndian.PutUint64(c.buf[:], p.turn)
	binary.NativeEndian.PutUint64(c.buf[8:], uint64(now.UnixNano()))
	p.onTheWay++
	if c.Kind == UDP && c.Unconnected {
		_ = unix.Sendto(p.fd, c.buf[:], unix.MSG_NOSIGNAL, c.to)
		return
	}
	_ = unix.Send(p.fd, c.buf[:], unix.MSG_NOSIGNAL)
}

func (c *client) ready(p *peer, events uint32, now time.Time) error {
	if events&unix.EPOLLOUT != 0 && c.Kind != UDP {
		// Connected, or refused, which the read below tells.
		e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p.fd)}
		if err := unix.EpollCtl(c.poll, unix.EPOLL_CTL_MOD, p.fd, &e); err != nil {
			return fmt.Errorf("watch a socket: %w", err)
		}
		c.ask(p, now)
		return nil
	}
	for {
		n, _, err := unix.Recvfrom(p.fd, p.buf[p.got:], unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN, err == unix.EINTR: //nolint:errorlint // errnos
			return nil
		case err != nil && c.Kind == UDP:
			continue // an ICMP error; the request is lost
		case (err != nil || n == 0) && c.Kind == Connect:
			c.result.Lost++ // refused, or ended too early; the next may fare better
			return c.again(p)
		case err != nil || n == 0:
			return fmt.Errorf("%s to %s: connection ended: %w", c.Kind, c.To, err)
		}
		if p.got += n; p.got < Size && c.Kind != UDP {
			continue
		}
		p.got = 0
		if binary.NativeEndian.Uint64(p.buf[:]) != p.turn {
			continue // late
		}
		c.answered(p, now)
		if c.Kind == Connect {
			return c.again(p)
		}
		c.ask(p, now)
		if c.Kind == TCP {
			return nil // there cannot be more
		}
	}
}

func (c *client) answered(p *peer, now time.Time) {
	c.result.Answers++
	p.onTheWay--
	p.last = now
	if c.Every > 0 {
		window := int(now.Sub(c.began) / c.Every)
		for len(c.result.Windows) <= window {
			c.result.Windows = append(c.result.Windows, 0)
		}
		c.result.Windows[window]++
	}
	asked := time.Unix(0, int64(binary.NativeEndian.Uint64(p.buf[8:])))
	if c.Kind == Connect {
		asked = p.begun
	}
	c.latency = append(c.latency, now.Sub(asked))
}

// again ends the connection, as a rule by a reset, so that no port of the
// client's is left waiting, and opens another.
func (c *client) again(p *peer) error {
	if !c.Orderly {
		c.reset(p)
	}
	delete(c.peers, p.fd)
	if err := unix.Close(p.fd); err != nil {
		return fmt.Errorf("close a connection: %w", err)
	}
	return c.open()
}

// reset makes the close that follows one.
func (c *client) reset(p *peer) {
	_ = unix.SetsockoptLinger(p.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// giveUp begins anew where nothing has come for a while.
func (c *client) giveUp(now time.Time) {
	if c.Kind != UDP {
		return
	}
	for _, p := range c.peers {
		if now.Sub(p.last) < patience {
			continue
		}
		c.result.Lost += int64(p.onTheWay)
		p.onTheWay, p.last = 0, now
		p.turn++
		for range c.Window {
			c.ask(p, now)
		}
	}
}

// sockaddr has an IPv6 socket for an IPv4-mapped address.
func sockaddr(a netip.AddrPort) (family int, sa unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
