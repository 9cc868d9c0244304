package proxy

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a socket of package net.
type conn interface {
	syscall.Conn
	Close() error
}

// frontend is the socket that a proxy serves.
type frontend struct {
	addr  net.Addr
	local netip.AddrPort // addr
	log   *slog.Logger

	mu      *sync.Mutex // the hub's; guards below
	fd      int         // -1 once closed
	conn    conn        // nil if fd is out of it
	closed  bool        // by the proxy's Close
	failing sparsely
	wait    backoff
	rejoin  *time.Timer // after an error of join
}

// newFrontend takes c's socket out of c, which it closes, so that the scheduler's
// poller, where package net has every socket, is not woken for each event as
// well.
func newFrontend(mu *sync.Mutex, c conn, addr net.Addr, log *slog.Logger) frontend {
	f := frontend{addr: addr, local: plain(addrPort(addr)), log: orSilent(log), mu: mu, fd: fdOf(c)}
	if f.fd < 0 {
		return f // closed: there is nothing to serve
	}
	fd, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil { // no file left: it works so too
		f.conn = c
		return f
	}
	_ = c.Close()
	f.fd = fd
	return f
}

// Addr is the socket's address.
func (f *frontend) Addr() net.Addr { return f.addr }

// Control calls do with the socket, which do must not close. It is for options
// and filters. The error is net.ErrClosed after Close.
func (f *frontend) Control(do func(fd uintptr)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return net.ErrClosed
	}
	do(uintptr(f.fd))
	return nil
}

// join enters the loop, or tries again later: what is missing is memory or files.
func (f *frontend) join(enter func() error) {
	err := enter()
	if err == nil {
		f.wait = 0
		return
	}
	if f.failing.now() {
		f.log.Warn("serve port", "frontend", f.addr, "err", err)
	}
	f.rejoin = time.AfterFunc(f.wait.next(), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.closed {
			f.join(enter)
		}
	})
}

// close is the first step of a proxy's Close, after which it is not served any
// more. What it has to leave of the loop comes before.
func (f *frontend) close() error {
	f.closed = true
	if f.rejoin != nil {
		f.rejoin.Stop()
	}
	fd := f.fd
	f.fd = -1
	var err error
	switch {
	case f.conn != nil:
		err = f.conn.Close()
	case fd >= 0:
		err = unix.Close(fd)
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
