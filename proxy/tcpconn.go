package proxy

import (
	"context"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// tcpConn is one client's connection and the one to its backend.
type tcpConn struct {
	client  *net.TCPConn
	dialing context.Context // ended by reset and close
	cancel  context.CancelFunc

	mu      sync.Mutex   // guards below
	backend *net.TCPConn // nil until dialled
	halves  int          // directions that have ended well
	ended   bool
}

func newTCPConn(ctx context.Context, client *net.TCPConn) *tcpConn {
	c := &tcpConn{client: client}
	c.dialing, c.cancel = context.WithCancel(ctx)
	return c
}

// splice joins the client and backend, which c owns from here on, and returns
// when both are closed.
func (c *tcpConn) splice(backend *net.TCPConn) {
	c.mu.Lock()
	ended := c.ended
	if !ended {
		c.backend = backend
	}
	c.mu.Unlock()
	if ended { // reset while it was dialled
		abort(backend)
		return
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go c.carryReplies(&wg)
	c.carry(backend, c.client)
	wg.Wait()
}

func (c *tcpConn) carryReplies(wg *sync.WaitGroup) {
	defer wg.Done()
	c.carry(c.client, c.backend)
}

// carry is one direction. It copies until src has no more to say, tells dst so,
// and leaves the other direction to go on.
//
// Any error resets both sides. It came from a peer that reset, or is gone, and
// the other peer must not take that for an orderly end.
func (c *tcpConn) carry(dst, src *net.TCPConn) {
	if _, err := io.Copy(dst, src); err != nil { // splices between TCPConns
		c.reset()
		return
	}
	if err := dst.CloseWrite(); err != nil {
		c.reset()
		return
	}
	if c.halfDone() {
		c.close()
		return
	}
	awaitBreak(src)
	c.reset() // nothing, if the other direction has closed both by now
}

// awaitBreak waits until src, from which everything has been read, is reset,
// found dead by keepalive, or closed. Nobody else would notice: the other
// direction only writes to src, and may have nothing to write as long as it
// lives.
func awaitBreak(src *net.TCPConn) {
	raw, err := src.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		// A read would answer EOF, as before; only SO_ERROR tells of a reset.
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		return err != nil || errno != 0
	})
}

// halfDone counts a direction that has ended well. It is true for the second.
func (c *tcpConn) halfDone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.halves++
	return c.halves == 2
}

// reset ends both connections by RST, so that neither peer takes what it has
// read for all there was, and no TIME_WAIT holds a port to the backend.
func (c *tcpConn) reset() { c.end(abort) }

// close ends both connections after each peer has had its FIN.
func (c *tcpConn) close() { c.end(func(t *net.TCPConn) { _ = t.Close() }) }

func (c *tcpConn) end(how func(*net.TCPConn)) {
	c.cancel()
	c.mu.Lock()
	ended, backend := c.ended, c.backend
	c.ended = true
	c.mu.Unlock()
	if ended {
		return
	}
	how(c.client)
	if backend != nil {
		how(backend)
	}
}

// abort closes t by RST. An error would mean that t is closed already.
func abort(t *net.TCPConn) {
	_ = t.SetLinger(0)
	_ = t.Close()
}
