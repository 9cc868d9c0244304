package proxy

import (
	"net/netip"
	"time"
)

const (
	// spentEnough is how many ports to one backend may wait before they are used
	// again: few enough that the kernel finds another quickly, and most of the
	// 28,232 that it may choose from (ip_local_port_range) stay with the host.
	spentEnough = 1024
	// spentMost is how many may wait for all backends together.
	spentMost = 8 * spentEnough
	// spentFor is the kernel's TIME_WAIT (TCP_TIMEWAIT_LEN).
	spentFor = time.Minute
)

// spent has the local addresses whose last connection has left a TIME_WAIT: its
// client closed first, and so did we towards the backend. The kernel does not
// choose them again for that backend while it lasts. A client that connects and
// closes a few hundred times a second would use up all ports there are, and
// finding the last of them takes milliseconds.
//
// A socket that asks for such a port gets it: connect(2) allows a new connection
// in place of one in TIME_WAIT, if TCP timestamps tell their segments apart (RFC
// 6191) and the port was bound by bind(2). To leave that to the kernel takes
// net.ipv4.tcp_tw_reuse=1, which is not ours to set, and IP_LOCAL_PORT_RANGE
// cannot make the range wider.
type spent struct {
	waiting map[netip.AddrPort][]spentPort // by backend, the oldest first
	n       int
	swept   time.Time // last, because there was no room
}

type spentPort struct {
	from sockname
	over time.Time
}

// put adds a port that has just been left to a TIME_WAIT, if there is room.
func (s *spent) put(backend netip.AddrPort, from sockname, now time.Time) {
	if s.n >= spentMost && now.Sub(s.swept) >= time.Second {
		s.swept = now
		s.forget(now)
	}
	if s.n >= spentMost {
		return
	}
	if s.waiting == nil {
		s.waiting = make(map[netip.AddrPort][]spentPort)
	}
	s.waiting[backend] = append(s.waiting[backend], spentPort{from, now.Add(spentFor)})
	s.n++
}

// take is the port that has waited longest for a backend, once there are enough.
func (s *spent) take(backend netip.AddrPort, now time.Time) (from sockname, ok bool) {
	ports := s.waiting[backend]
	if len(ports) < spentEnough {
		return from, false
	}
	if !ports[0].over.After(now) {
		s.forget(now) // the kernel chooses them again
		return from, false
	}
	s.waiting[backend] = ports[1:]
	s.n--
	return ports[0].from, true
}

// forget drops what has waited to the end.
func (s *spent) forget(now time.Time) {
	for backend, ports := range s.waiting {
		over := 0
		for over < len(ports) && !ports[over].over.After(now) {
			over++
		}
		s.n -= over
		if over == len(ports) {
			delete(s.waiting, backend)
		} else {
			s.waiting[backend] = ports[over:]
		}
	}
}
