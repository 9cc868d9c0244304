package proxy

import (
	"golang.org/x/sys/unix"
)

// waiting is replies for which the frontend had no room: its device is slower
// than the backend. They are few, because as long as there are any the flows of
// that frontend are not read; what comes meanwhile waits in their sockets.
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
func (w *waiting) resume(l *loop, fd int) bool {
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
