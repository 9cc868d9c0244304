package proxy

import (
	"golang.org/x/sys/unix"
)

// outlet is a socket that replies leave by: a frontend, or a front of one flow.
type outlet struct {
	fd      int
	answers chain // in the loop's batch
	waiting waiting
}

// events are those that the loop is to wait for.
func (o *outlet) events() uint32 {
	if o.waiting.some() {
		return unix.EPOLLIN | unix.EPOLLOUT
	}
	return unix.EPOLLIN
}

// resume sends what waits, if there is room for it now.
func (o *outlet) resume(l *udpLoop, events uint32) {
	if events&unix.EPOLLOUT != 0 && o.waiting.resume(l, o.fd) {
		l.rewatch(o.fd, o.events())
	}
}

// waiting is replies for which an outlet had no room: its device is slower
// than the backend. They are few, because as long as there are any the flows of
// that outlet are not read; what comes meanwhile waits in their sockets.
type waiting struct {
	replies []reply
	paused  []*flow
}

type reply struct {
	flow *flow
	data []byte
}

// add copies a datagram, whose place is needed for others.
func (w *waiting) add(f *flow, v *unix.Iovec) {
	w.replies = append(w.replies, reply{f, bytesOf(v)})
}

// some says whether flows have to wait.
func (w *waiting) some() bool { return len(w.replies) > 0 }

// pause has f not be read for a while.
func (w *waiting) pause(f *flow, events uint32) {
	if events&unix.EPOLLERR != 0 {
		// Told whether asked for or not, until somebody takes note.
		_, _ = unix.GetsockoptInt(f.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	}
	if !f.paused {
		f.paused = true
		w.paused = append(w.paused, f)
		f.proxy.loop.rewatch(f.fd, 0)
	}
}

// resume sends what waits to the frontend, and has flows read again once
// nothing is left. It is false if something is. Replies of flows that are over
// are left out: they may be of a backend of before.
func (w *waiting) resume(l *udpLoop, fd int) bool {
	left := waiting{}
	for i, r := range w.replies {
		if r.flow.fd < 0 {
			continue
		}
		l.out.add(r.data, r.flow, &r.flow.client, &r.flow.down)
		if l.out.send(fd, left.add); left.some() {
			w.replies = append(left.replies, w.replies[i+1:]...)
			return false
		}
	}
	for _, f := range w.paused {
		if f.fd >= 0 {
			f.paused = false
			l.rewatch(f.fd, unix.EPOLLIN)
		}
	}
	*w = waiting{}
	return true
}
