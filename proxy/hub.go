package proxy

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// hub is what all proxies of one protocol share: one lock, and one loop while
// there is anybody to serve.
//
// The loop holds the lock while it works and not while it sleeps. So Reset and
// Close do their work themselves, in between, and nothing is under way when they
// have the lock.
type hub[L looper] struct {
	open func() (L, error)

	mu    sync.Mutex // guards below, and the state of every proxy of the hub
	loop  L          // the zero L: nobody is served
	users int
}

// looper is a loop with what it does for its protocol.
type looper interface {
	comparable
	base() *loop
	// round does what is to be done for events that have come.
	round(events []unix.EpollEvent)
	// timeout is how long the loop may sleep after a round, in milliseconds,
	// -1 for ever.
	timeout() int
	free()
}

// enter has a user's fd be watched, and starts the loop for the first.
func (h *hub[L]) enter(fd int, s source) (L, error) {
	var none L
	if h.loop == none {
		l, err := h.open()
		if err != nil {
			return none, err
		}
		h.loop = l
		go h.run(l)
	}
	l := h.loop
	h.users++
	if err := l.base().watch(fd, s, unix.EPOLLIN); err != nil {
		h.leave() // nothing to wait for: the loop has done nothing for s
		return none, err
	}
	return l, nil
}

// leave is what to wait for, without the lock: nil for all but the last user,
// with whom the loop ends.
func (h *hub[L]) leave() <-chan struct{} {
	if h.users--; h.users > 0 {
		return nil
	}
	var none L
	l := h.loop.base()
	h.loop = none
	l.wake()
	return l.ended
}

// run ends when the last user has left.
func (h *hub[L]) run(l L) {
	b := l.base()
	defer close(b.ended)
	defer l.free()
	// A thread of its own keeps the caches, and the scheduler's hands off.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for timeout := -1; ; {
		n := b.wait(timeout)
		h.mu.Lock()
		if h.loop != l {
			h.mu.Unlock()
			return
		}
		l.round(b.events[:n])
		timeout = l.timeout()
		h.mu.Unlock()
	}
}

// Probe returns when the loops have let go of their locks, which they do many
// times a second under the highest load. Where it never returns, a loop hangs.
func Probe() {
	for _, mu := range []*sync.Mutex{&udpHub.mu, &tcpHub.mu} {
		probe(mu)
	}
}

func probe(mu *sync.Mutex) {
	mu.Lock()
	defer mu.Unlock()
}
