package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const maxEvents = 256

// source is a socket that a loop waits for.
type source interface {
	ready(events uint32)
}

// loop is epoll(7) on one thread, with the sockets and the times that it waits
// for. One thread is faster than several, which would only wake one another:
// nearly all of its time is the kernel's, which delivers what is sent before the
// call returns.
type loop struct {
	epoll  int
	waker  int // eventfd
	ended  chan struct{}
	events [maxEvents]unix.EpollEvent

	// Guarded by the hub.
	now     time.Time // of this round
	sources []source  // by file descriptor
	due     deadlines
}

// init leaves nothing open after an error.
func (l *loop) init() (err error) {
	l.epoll, l.waker, l.ended, l.now = -1, -1, make(chan struct{}), time.Now()
	defer func() {
		if err != nil {
			l.free()
		}
	}()
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("open epoll: %w", err)
	}
	if l.waker, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("open eventfd: %w", err)
	}
	return l.watch(l.waker, nil, unix.EPOLLIN)
}

func (l *loop) base() *loop { return l }

func (l *loop) free() {
	for _, fd := range []int{l.epoll, l.waker} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// wake has the loop look whether it is still wanted.
func (l *loop) wake() {
	_, _ = unix.Write(l.waker, binary.NativeEndian.AppendUint64(nil, 1))
}

// watch has s told of events of fd until unwatch, or until fd is closed.
func (l *loop) watch(fd int, s source, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	if err := epollAdd(l.epoll, fd, &ev); err != nil {
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

// close closes fd. The kernel takes it out of epoll: nobody else has the socket.
func (l *loop) close(fd int) error {
	if fd < len(l.sources) {
		l.sources[fd] = nil
	}
	return closeSocket(fd)
}

// wait looks first, and sleeps only if there is nothing: under load it never
// does, and the scheduler need not know.
func (l *loop) wait(timeout int) int {
	if n, err := epollPoll(l.epoll, l.events[:]); err == nil && (n > 0 || timeout == 0) {
		return n
	}
	n, err := unix.EpollWait(l.epoll, l.events[:], timeout)
	if err != nil { // EINTR
		return 0
	}
	return n
}

// timeout is until the next deadline.
func (l *loop) timeout() int { return l.due.timeout(l.now) }

// tick does what is due.
func (l *loop) tick() {
	for t := l.due.reached(l.now); t != nil; t = l.due.reached(l.now) {
		t.tick()
	}
}

// ignore is nil for errors that a socket recovers from by itself.
func ignore(err error) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}
