package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// hub is what all UDP proxies of a process share: one lock, and one loop while
// there is anybody to serve.
//
// The loop holds the lock while it works and not while it sleeps. So Reset and
// Close do their work themselves, in between, and nothing is under way when they
// have the lock.
type hub struct {
	mu    sync.Mutex // guards below, and the state of every UDP and flow
	loop  *loop
	users int
}

var udpHub hub

// enter counts a user, and starts the loop for the first.
func (h *hub) enter() (*loop, error) {
	if h.loop == nil {
		l, err := newLoop(h)
		if err != nil {
			return nil, err
		}
		h.loop = l
		go l.run()
	}
	h.users++
	return h.loop, nil
}

// leave is what to wait for, without the lock: nil for all but the last user,
// with whom the loop ends.
func (h *hub) leave() <-chan struct{} {
	if h.users--; h.users > 0 {
		return nil
	}
	l := h.loop
	h.loop = nil
	l.wake()
	return l.ended
}

const (
	maxEvents = 256
	// perFlow is how many replies of one flow are read at a time, so that one
	// busy backend leaves room for the others.
	perFlow = 16
)

// source is a socket that the loop waits for.
type source interface {
	ready(events uint32)
}

// loop carries the datagrams of all proxies, on one thread. One is faster than
// several, which would only wake one another: nearly all of its time is the
// kernel's, which delivers what is sent before the call returns.
type loop struct {
	hub     *hub
	epoll   int
	waker   int // eventfd
	ended   chan struct{}
	segment int // the largest datagram that may share a message; 0: this kernel has no UDP_SEGMENT
	events  [maxEvents]unix.EpollEvent

	// Guarded by the hub.
	now     time.Time // of this round
	sources []source  // by file descriptor
	due     deadlines
	flows   int

	// Of a round.
	batch    *batch
	out      outbox
	asked    []*flow // have requests in batch
	replies  int     // in batch
	answered []*UDP  // have replies in batch
}

func newLoop(h *hub) (_ *loop, err error) {
	l := &loop{hub: h, epoll: -1, waker: -1, ended: make(chan struct{}), now: time.Now()}
	defer func() {
		if err != nil {
			l.free()
		}
	}()
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("open epoll: %w", err)
	}
	if l.waker, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("open eventfd: %w", err)
	}
	if err = l.watch(l.waker, nil, unix.EPOLLIN); err != nil {
		return nil, err
	}
	if l.batch, err = newBatch(); err != nil {
		return nil, err
	}
	if l.segment, err = segmentLimit(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *loop) free() {
	for _, fd := range []int{l.epoll, l.waker} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	if l.batch != nil {
		l.out = outbox{} // see batch.free
		l.batch.free()
	}
}

// wake has the loop look whether it is still wanted.
func (l *loop) wake() {
	_, _ = unix.Write(l.waker, binary.NativeEndian.AppendUint64(nil, 1))
}

// watch has s told of events of fd until unwatch, or until fd is closed.
func (l *loop) watch(fd int, s source, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watch socket: %w", err)
	}
	for fd >= len(l.sources) {
		l.sources = append(l.sources, nil)
	}
	l.sources[fd] = s
	return nil
}

// rewatch changes the events of a watched fd.
func (l *loop) rewatch(fd int, events uint32) {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, fd, &ev)
}

func (l *loop) unwatch(fd int) {
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	l.sources[fd] = nil
}

// close closes a watched fd. The kernel takes it out of epoll: nobody else has
// the socket.
func (l *loop) close(fd int) error {
	l.sources[fd] = nil
	return unix.Close(fd)
}

// run ends when the last user has left.
func (l *loop) run() {
	defer close(l.ended)
	defer l.free()
	// A thread of its own keeps the caches, and the scheduler's hands off.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for timeout := -1; ; {
		n := l.wait(timeout)
		l.hub.mu.Lock()
		if l.hub.loop != l {
			l.hub.mu.Unlock()
			return
		}
		l.round(l.events[:n])
		timeout = l.due.timeout(l.now)
		l.hub.mu.Unlock()
	}
}

// wait looks first, and sleeps only if there is nothing: under load it never
// does, and the scheduler need not know.
func (l *loop) wait(timeout int) int {
	if n, err := epollPoll(l.epoll, l.events[:]); err == nil && n > 0 {
		return n
	}
	n, err := unix.EpollWait(l.epoll, l.events[:], timeout)
	if err != nil { // EINTR
		return 0
	}
	return n
}

// round carries what is ready. An event may be of a socket that was closed since,
// by somebody else or for another in this round; then its number has no source,
// or a new one, which finds nothing to read.
func (l *loop) round(events []unix.EpollEvent) {
	l.now = time.Now()
	// Replies first: they leave together, and their slots are the requests'.
	for pass := range 2 {
		for _, ev := range events {
			s := l.sources[ev.Fd]
			if _, isFlow := s.(*flow); s != nil && isFlow == (pass == 0) {
				s.ready(ev.Events)
			}
		}
		l.sendReplies()
	}
	for p := l.due.reached(l.now); p != nil; p = l.due.reached(l.now) {
		p.tick()
	}
}

// sendRequests sends what is in the batch to backends. What cannot leave at once
// is dropped: waiting would hold up every other flow.
func (l *loop) sendRequests() {
	for i, f := range l.asked {
		l.asked[i] = nil
		f.requests.each(l.batch, func(slot int) { l.out.add(l.batch.data(slot), f, nil, &f.up) })
		l.out.send(f.fd, func(*flow, *unix.Iovec) {})
	}
	l.asked = l.asked[:0]
}

// sendReplies sends what is in the batch to clients, by one call for each
// frontend.
func (l *loop) sendReplies() {
	for i, p := range l.answered {
		l.answered[i] = nil
		p.answers.each(l.batch, func(slot int) {
			f := l.batch.owner[slot]
			l.out.add(l.batch.data(slot), f, &f.client, &f.down)
		})
		l.out.send(p.fd, p.waiting.add)
		if p.waiting.some() {
			l.rewatch(p.fd, p.events())
		}
	}
	clear(l.batch.owner[:l.replies])
	l.answered, l.replies = l.answered[:0], 0
}

// ignore is nil for errors that a socket recovers from by itself.
func ignore(err error) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}
