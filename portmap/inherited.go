package portmap

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// heirs is a Reserver that takes the sockets that an earlier process left in an
// FDStore, as long as there are any, before it has new ones bound. A nil *heirs
// has none.
//
// What a socket is, the kernel says, and nobody else. One that is in the way of
// another that is wanted is given up. An error leaves an inherited socket with the
// store, for the next attempt.
type heirs struct {
	Reserver
	store FDStore

	mu   sync.Mutex // guards below
	left map[heirKey][]heir
}

type heirKey struct {
	proto Proto
	port  uint16
}

// heir is an inherited socket and what it is bound to.
type heir struct {
	StoredSocket
	bound Mapping
}

func newHeirs(r Reserver, store FDStore) *heirs {
	h := &heirs{Reserver: r, store: store, left: map[heirKey][]heir{}}
	netns, _ := netnsCookie() // 0 before Linux 5.14
	var unfit []StoredSocket
	for _, s := range store.Inherited() {
		m, err := reservedBy(s, netns)
		if err != nil {
			unfit = append(unfit, s)
			continue
		}
		k := heirKey{m.Proto, m.HostPort}
		h.left[k] = append(h.left[k], heir{s, m})
	}
	if len(unfit) > 0 {
		store.Remove(unfit) // before they are in the way
	}
	return h
}

// Reserve implements Reserver.
func (h *heirs) Reserve(p Proto, addr netip.Addr, port uint16) (*Socket, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	want := Mapping{Proto: p, HostIP: addr, HostPort: port, HostPortEnd: port}
	for _, o := range h.left[heirKey{p, port}] {
		if o.bound.HostIP != addr && (addr.IsValid() || o.bound.HostIP != onlyWildcard()) {
			continue
		}
		if s, err := adopt(p, o); err == nil {
			return s, nil
		}
	}
	h.clear(want)
	return h.Reserver.Reserve(p, addr, port)
}

// giveUp gives up what is in the way of m, which is not to be held by sockets.
func (h *heirs) giveUp(m Mapping) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clear(m)
}

func (h *heirs) clear(m Mapping) {
	var inTheWay []StoredSocket
	for k, os := range h.left {
		if k.proto != m.Proto || k.port < m.HostPort || k.port > m.HostPortEnd {
			continue
		}
		h.left[k] = slices.DeleteFunc(slices.Clone(os), func(o heir) bool {
			in := sameHost(o.bound, m)
			if in {
				inTheWay = append(inTheWay, o.StoredSocket)
			}
			return in
		})
	}
	if len(inTheWay) > 0 {
		h.store.Remove(inTheWay)
	}
}

// settle gives up what nobody has taken.
func (h *heirs) settle() {
	if h == nil {
		return
	}
	h.mu.Lock()
	h.left = nil
	h.mu.Unlock()
	h.store.Settle()
}

// onlyWildcard is what Sockets binds for every address of this host: the zero Addr
// is both families' by one socket, and 0.0.0.0 all there is without IPv6.
var onlyWildcard = sync.OnceValue(func() netip.Addr {
	c, err := net.ListenUDP("udp", nil) // which is chosen as for TCP
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	if c.LocalAddr().(*net.UDPAddr).IP.To4() != nil {
		return netip.IPv4Unspecified()
	}
	return netip.Addr{}
})

var errNotReserved = errors.New("not a socket that reserves a port")

// reservedBy is the port that a socket reserves, of length 1, if it does so just
// as one of Sockets', in the network namespace of that cookie.
func reservedBy(s StoredSocket, netns uint64) (m Mapping, err error) {
	failed := errNotReserved
	err = s.Control(func(fd uintptr) { m, failed = reservedByFD(int(fd), netns) })
	return m, errors.Join(err, failed)
}

func reservedByFD(fd int, netns uint64) (m Mapping, err error) {
	ask := func(level, option int) int {
		v, e := unix.GetsockoptInt(fd, level, option)
		err = errors.Join(err, e)
		return v
	}
	proto, kind := ask(unix.SOL_SOCKET, unix.SO_PROTOCOL), ask(unix.SOL_SOCKET, unix.SO_TYPE)
	listens, reuse := ask(unix.SOL_SOCKET, unix.SO_ACCEPTCONN) == 1, ask(unix.SOL_SOCKET, unix.SO_REUSEADDR) == 1
	shared, device := ask(unix.SOL_SOCKET, unix.SO_REUSEPORT), ask(unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if err != nil {
		return m, err
	}
	good := false
	switch m.Proto = Proto(proto); m.Proto {
	case TCP:
		good = kind == unix.SOCK_STREAM && listens && reuse
	case SCTP:
		good = kind == unix.SOCK_STREAM && listens
	case UDP:
		_, connected := unix.Getpeername(fd)
		good = kind == unix.SOCK_DGRAM && !reuse && errors.Is(connected, unix.ENOTCONN)
	}
	if !good || shared != 0 || device != 0 {
		return m, errNotReserved
	}
	if cookie, e := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); e == nil && cookie != netns {
		return m, errNotReserved
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return m, err
	}
	port := 0
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		m.HostIP, port = netip.AddrFrom4(sa.Addr), sa.Port
	case *unix.SockaddrInet6:
		m.HostIP, port = netip.AddrFrom16(sa.Addr), sa.Port
		only6 := ask(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) == 1
		switch {
		case err != nil || sa.ZoneId != 0 || !only6 && !m.HostIP.IsUnspecified():
			return m, errNotReserved
		case !only6:
			m.HostIP = netip.Addr{}
		}
	}
	if port == 0 {
		return m, errNotReserved
	}
	m.HostPort, m.HostPortEnd = uint16(port), uint16(port)
	return m, nil
}

func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

// adopt is a copy of an inherited socket. What waits in it waits on, and so does
// what comes before it is served.
func adopt(p Proto, o heir) (*Socket, error) {
	fd := -1
	failed := errNotReserved
	err := o.Control(func(of uintptr) { fd, failed = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	s := &Socket{sctp: -1, adopted: true}
	if p == SCTP {
		s.sctp = fd
		return s, nil
	}
	f := os.NewFile(uintptr(fd), "inherited")
	defer f.Close()
	if p == TCP {
		ln, err := net.FileListener(f)
		if err != nil {
			return nil, err
		}
		s.TCP = ln.(*net.TCPListener)
		return s, nil
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	s.UDP = c.(*net.UDPConn)
	return s, nil
}
