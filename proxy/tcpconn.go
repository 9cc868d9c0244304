package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// tcpConn is one client's connection and the one to its backend.
type tcpConn struct {
	timer     // of the dial
	proxy     *TCP
	local, to netip.AddrPort
	count     *Counters

	client, backend side
	connected       bool     // to the backend
	spent           sockname // our address towards the backend, if the client closed first
	queued          bool     // in todo
	over            bool
}

// dial begins to connect to the backend. After an error the connection is to be
// refused.
func (c *tcpConn) dial() error {
	p, l := c.proxy, c.proxy.loop
	name, _, err := newSockname(c.to)
	if err != nil {
		return err
	}
	from, ok := l.spent.take(c.to, l.now)
	if ok {
		c.backend.fd, err = connectTCP(&name, &from)
	}
	if !ok || err != nil { // somebody else may have that port by now
		c.backend.fd, err = connectTCP(&name, nil)
	}
	if err != nil {
		return err
	}
	for _, s := range [...]*side{&c.client, &c.backend} {
		// All that can come, once: at the edge, so that nobody is told twice.
		err := l.watch(s.fd, s, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLPRI|unix.EPOLLET)
		if err != nil {
			return err
		}
	}
	l.due.set(c, l.now.Add(p.dialTimeout))
	return nil
}

// connectTCP opens a socket that connects to a backend, from a given address or, with
// nil, one that the kernel chooses.
func connectTCP(to, from *sockname) (int, error) {
	fd, err := openSocket(to.family(), unix.SOCK_STREAM)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	tune(fd)
	_ = setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // see spent; and servers may listen at the port
	if from != nil {
		if err := bind(fd, from); err != nil {
			return -1, errors.Join(os.NewSyscallError("bind", err), closeSocket(fd))
		}
	}
	if err := connect(fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return -1, errors.Join(os.NewSyscallError("connect", err), closeSocket(fd))
	}
	return fd, nil
}

// tick is the end of a dial that takes too long.
func (c *tcpConn) tick() { c.refuse(unix.ETIMEDOUT) }

// queue has run be called.
func (c *tcpConn) queue() {
	if !c.queued {
		c.queued = true
		c.proxy.loop.todo = append(c.proxy.loop.todo, c)
	}
}

// run carries what can be carried.
//
// Any error resets both sides. It came from a peer that reset, or is gone, and
// the other peer must not take that for an orderly end.
func (c *tcpConn) run() {
	c.queued = false
	if c.over || !c.connected && !c.dialled() {
		return
	}
	more, err := c.client.carry()
	if err == nil {
		var also bool
		also, err = c.backend.carry()
		more = more || also
	}
	switch {
	case err != nil || c.client.broken || c.backend.broken:
		c.reset()
	case c.client.ended && c.backend.ended:
		if l := c.proxy.loop; c.spent != (sockname{}) {
			l.spent.put(c.to, c.spent, l.now)
		}
		c.end()
	case more:
		c.queue()
	}
}

// dialled says whether the backend has accepted.
func (c *tcpConn) dialled() bool {
	if c.backend.broken {
		errno, err := unix.GetsockoptInt(c.backend.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil {
			err = unix.Errno(errno)
		}
		c.refuse(os.NewSyscallError("connect", err))
		return false
	}
	if c.client.broken {
		c.reset()
		return false
	}
	c.connected = c.backend.writable
	if c.connected {
		c.proxy.loop.due.set(c, time.Time{})
	}
	return c.connected
}

// refuse resets a client that cannot be served.
func (c *tcpConn) refuse(err error) {
	c.count.add(refusal(err), 1)
	if log := c.proxy.log; log.Enabled(context.Background(), slog.LevelDebug) {
		log.Debug("refuse connection", "frontend", c.local, "client", peerOf(c.client.fd), "backend", c.to, "err", err)
	}
	c.reset()
}

// reset ends both connections by RST, so that neither peer takes what it has
// read for all there was, and no TIME_WAIT holds a port to the backend.
func (c *tcpConn) reset() {
	for _, s := range [...]*side{&c.client, &c.backend} {
		if s.fd >= 0 {
			_ = setAbort(s.fd)
		}
	}
	c.end()
}

// end closes both connections. It does nothing if they are.
func (c *tcpConn) end() {
	if c.over {
		return
	}
	c.over = true
	p := c.proxy
	p.loop.due.set(c, time.Time{})
	for _, s := range [...]*side{&c.client, &c.backend} {
		s.release()
		if s.fd >= 0 {
			_ = p.loop.close(s.fd)
		}
	}
	p.files.give(filesOfConn)
	c.count.add(connections, -1)
	delete(p.conns, c)
}

// abort closes a socket by RST.
func abort(fd int) {
	_ = setAbort(fd)
	_ = closeSocket(fd)
}

// The intervals are package net's, in seconds.
const (
	keepAliveEvery = 15
	keepAliveCount = 9
)

// tune sends small messages at once, and finds out about peers that are gone. The
// sockets that come of a listener have it from there. An error would mean that
// the socket is gone.
func tune(fd int) {
	for _, o := range [...]struct{ level, name, value int }{
		{unix.SOL_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_TCP, unix.TCP_KEEPIDLE, keepAliveEvery},
		{unix.SOL_TCP, unix.TCP_KEEPCNT, keepAliveCount},
		{unix.SOL_TCP, unix.TCP_KEEPINTVL, keepAliveEvery},
	} {
		_ = setInt(fd, o.level, o.name, o.value)
	}
}

// tuned looks at what tune sets last.
func tuned(fd int) bool {
	n, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPINTVL)
	return err == nil && n == keepAliveEvery
}
