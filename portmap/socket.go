package portmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/proxy"
)

// Reserver takes a host port from every other process of this host. Reserving is
// apart from serving: whether a port is also served by the proxy is decided
// later, and another Reserver may hold ports without a socket each.
type Reserver interface {
	// Reserve takes one port of one host address; the zero Addr means all of
	// both families. The error wraps the errno of bind(2): EADDRINUSE,
	// EADDRNOTAVAIL, EACCES, EMFILE.
	Reserve(p Proto, addr netip.Addr, port uint16) (*Socket, error)
}

// Sockets reserves ports by binding sockets: TCP listens with SO_REUSEADDR, so
// that neither a program nor a connection in TIME_WAIT is in the way of the
// other; UDP is bound without it. One dual-stack socket holds both families. A
// drop-all filter stands on each until Socket.Open, so that nothing is accepted
// or queued before somebody serves it.
type Sockets struct {
	log    *slog.Logger
	noSCTP sync.Once
}

// NewSockets returns a Reserver. A nil logger is silent.
func NewSockets(log *slog.Logger) *Sockets {
	return &Sockets{log: orDiscard(log)}
}

// Socket is one reserved port. Exactly one of TCP and UDP is set, or neither for
// SCTP.
type Socket struct {
	TCP  *net.TCPListener
	UDP  *net.UDPConn
	sctp int // file descriptor, -1 for none

	taken   controlled // by the proxy out of TCP or UDP, nil before
	adopted bool       // of an earlier process: there may be no filter
}

// controlled is whoever has a socket and lends it for options.
type controlled interface {
	Control(f func(fd uintptr)) error
}

// noSocket stands for a port of a routed network, which reserves nothing.
func noSocket() *Socket { return &Socket{sctp: -1} }

// Reserve implements Reserver.
func (s *Sockets) Reserve(p Proto, addr netip.Addr, port uint16) (*Socket, error) {
	network, host := p.String(), ""
	if addr.IsValid() {
		host = addr.String()
		network += famDigit(addr.Is4())
	}
	local := net.JoinHostPort(host, strconv.Itoa(int(port)))
	lc := net.ListenConfig{Control: s.filter}
	lc.SetMultipathTCP(false)
	switch p {
	case TCP:
		ln, err := lc.Listen(context.Background(), network, local)
		if err != nil {
			return nil, err
		}
		return &Socket{TCP: ln.(*net.TCPListener), sctp: -1}, nil
	case UDP:
		pc, err := lc.ListenPacket(context.Background(), network, local)
		if err != nil {
			return nil, err
		}
		return &Socket{UDP: pc.(*net.UDPConn), sctp: -1}, nil
	case SCTP:
		return s.reserveSCTP(addr, port)
	}
	return nil, fmt.Errorf("reserve %s port %d: %w", p, port, ErrBadPort)
}

// filter drops all that arrives from before the socket is bound.
func (s *Sockets) filter(_, _ string, c syscall.RawConn) error {
	return control(c, s.attach)
}

// attach also refuses a socket for which there is no room: a daemon without a
// file left can neither say so nor write its state.
func (s *Sockets) attach(fd int) error {
	if proxy.KeptBack(fd) {
		return unix.EMFILE
	}
	return dropAll(fd)
}

func control(c controlled, f func(fd int) error) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// reserveSCTP binds and listens where the kernel has SCTP sockets. Elsewhere the
// allocator alone holds the port; NAT does not need a socket.
func (s *Sockets) reserveSCTP(addr netip.Addr, port uint16) (*Socket, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(port), Addr: netip.IPv6Unspecified().As16()})
	switch {
	case addr.Is4():
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(port), Addr: addr.As4()}
	case addr.Is6():
		sa = &unix.SockaddrInet6{Port: int(port), Addr: addr.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
		s.noSCTP.Do(func() {
			s.log.Warn("this kernel has no SCTP sockets; sctp ports are reserved among Portolan's endpoints alone")
		})
		return &Socket{sctp: -1}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open sctp socket: %w", err)
	}
	if family == unix.AF_INET6 {
		only := 0
		if addr.IsValid() {
			only = 1
		}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
	}
	err = errors.Join(err, s.attach(fd))
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind sctp port %d: %w", port, err)
	}
	return &Socket{sctp: fd}, nil
}

// Open takes the drop-all filter away.
func (s *Socket) Open() error {
	return s.control(func(fd int) error {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	})
}

// Shut puts the drop-all filter back, as long as nobody serves the port.
func (s *Socket) Shut() error {
	return s.control(dropAll)
}

func (s *Socket) control(f func(fd int) error) error {
	var c controlled
	var err error
	switch {
	case s.taken != nil:
		c = s.taken
	case s.TCP != nil:
		c, err = s.TCP.SyscallConn()
	case s.UDP != nil:
		c, err = s.UDP.SyscallConn()
	default:
		return nil
	}
	if err != nil {
		return err
	}
	return control(c, f)
}

// Close gives the port back.
func (s *Socket) Close() error {
	switch {
	case s.TCP != nil:
		return s.TCP.Close()
	case s.UDP != nil:
		return s.UDP.Close()
	case s.sctp >= 0:
		fd := s.sctp
		s.sctp = -1
		return unix.Close(fd)
	}
	return nil
}
