package proxy

import (
	"errors"

	"golang.org/x/sys/unix"
)

const (
	// The kernel's bounds for a message that it cuts into datagrams: 64 of them
	// (more since Linux 6.9), and what fits an IPv6 packet in all.
	maxSegments  = 64
	maxSegmented = 65000
)

// address is where replies go, and the address that they leave from.
type address struct {
	name   sockname
	length uint32
	source []byte // control message
}

// message is one datagram, or several to the same address that the kernel cuts
// apart: all of one size but the last, which may be shorter.
type message struct {
	flow   *flow
	to     *address // nil for a connected socket
	limit  *int     // size of the largest datagram that may share a message
	first  int      // of iovs
	count  int
	size   int // of the first datagram
	total  int
	closed bool // has a shorter one, which is the last
}

// outbox sends datagrams by one socket, in order, in as few calls as it can.
type outbox struct {
	n    int // messages
	used int // iovs
	msgs [slots]message
	iovs [slots]unix.Iovec
	hdrs [slots]mmsghdr
	oobs [slots][oobSize]byte
}

// add takes a datagram of f. At most slots fit.
func (o *outbox) add(data []byte, f *flow, to *address, limit *int) {
	v := &o.iovs[o.used]
	v.Base = &data[:1][0] // slots are longer than any datagram
	v.SetLen(len(data))
	o.used++
	if o.n > 0 && o.msgs[o.n-1].join(len(data), f) {
		return
	}
	o.msgs[o.n] = message{flow: f, to: to, limit: limit, first: o.used - 1, count: 1, size: len(data), total: len(data)}
	o.n++
}

// join is false if a datagram of that size needs a message of its own.
func (m *message) join(size int, f *flow) bool {
	// An empty datagram would vanish from a message.
	if m.flow != f || m.closed || size == 0 || size > m.size || m.size > *m.limit ||
		m.count == maxSegments || m.total+size > maxSegmented {
		return false
	}
	m.count++
	m.total += size
	m.closed = size < m.size
	return true
}

// send sends all, and empties the outbox. If the socket's buffer is full it
// stops, and calls left for each datagram that remains.
func (o *outbox) send(fd int, left func(f *flow, data *unix.Iovec)) {
	for i := range o.n {
		o.prepare(i)
	}
	again := false
	for i := 0; i < o.n; {
		n, err := o.sendFrom(fd, i)
		m := &o.msgs[i]
		switch {
		case err == nil:
			i += n
			again = false
			continue
		case errors.Is(err, unix.EAGAIN):
			for j := m.first; j < o.used; j++ {
				left(o.owner(i, j), &o.iovs[j])
			}
			o.clear()
			return
		case m.count > 1 && isSegmentError(err):
			// Datagrams of this size are longer than the route's packets, or
			// its device cannot.
			*m.limit = m.size - 1
			o.sendApart(fd, i)
			i++
			again = false
			continue
		case !again:
			// Twice, because an ICMP error that an earlier datagram caused is
			// reported by the next call, which then sends nothing.
			again = true
			if m.to == nil {
				m.flow.refused(err)
			}
			continue
		}
		// Lost, as the network might have lost it: the route is gone, or the
		// datagram too long for the receiver's family.
		m.flow.count.add(datagramsDropped, int64(m.count))
		i++
		again = false
	}
	o.clear()
}

// isSegmentError tells errors of a route that cannot carry a message that is to
// be cut from those that any datagram would meet.
func isSegmentError(err error) bool {
	for _, e := range [...]unix.Errno{unix.EINVAL, unix.EMSGSIZE, unix.EIO, unix.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// clear forgets flows, which may be over before the next message.
func (o *outbox) clear() {
	clear(o.msgs[:o.n])
	o.n, o.used = 0, 0
}

// owner is whose datagram is at v, from the message i on.
func (o *outbox) owner(i, v int) *flow {
	for o.msgs[i].first+o.msgs[i].count <= v {
		i++
	}
	return o.msgs[i].flow
}

// prepare fills the header of message i.
func (o *outbox) prepare(i int) {
	m, h := &o.msgs[i], &o.hdrs[i]
	h.Iov = &o.iovs[m.first]
	h.SetIovlen(m.count)
	n := 0
	if m.to == nil {
		h.Name, h.Namelen = nil, 0
	} else {
		h.Name, h.Namelen = &m.to.name[0], m.to.length
		n = copy(o.oobs[i][:], m.to.source)
	}
	if m.count > 1 {
		n += putSegment(o.oobs[i][n:], m.size)
	}
	h.Control = nil
	if n > 0 {
		h.Control = &o.oobs[i][0]
	}
	h.SetControllen(n)
}

// sendFrom sends message i, and maybe some that follow it.
func (o *outbox) sendFrom(fd, i int) (int, error) {
	if i+1 < o.n {
		return sendmmsg(fd, o.hdrs[i:o.n])
	}
	if m := &o.msgs[i]; m.count == 1 && m.to == nil {
		return 1, send(fd, &o.iovs[m.first]) // cheaper than with a header
	}
	return 1, sendmsg(fd, &o.hdrs[i].Msghdr)
}

// sendApart sends the datagrams of message i one by one.
func (o *outbox) sendApart(fd, i int) {
	m, h := o.msgs[i], &o.hdrs[i].Msghdr
	h.SetIovlen(1)
	h.Control = nil
	h.SetControllen(0)
	if m.to != nil && len(m.to.source) > 0 {
		h.Control = &o.oobs[i][0]
		h.SetControllen(len(m.to.source))
	}
	for j := range m.count {
		h.Iov = &o.iovs[m.first+j]
		err := sendmsg(fd, h)
		if err != nil {
			err = sendmsg(fd, h) // see send
		}
		if err != nil {
			m.flow.count.add(datagramsDropped, 1)
		}
	}
}
