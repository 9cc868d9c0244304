package proxy

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// bulkAfter is how many times in a row all that fits is read before a
	// direction is bulk.
	bulkAfter = 4
	// turns is how many messages of one direction are carried before it is the
	// others' turn. Of bulk it is one pipe.
	turns = 8
)

// side is one of the two sockets of a connection, and the direction from it to
// the other: bytes are read here and written there.
//
// Small messages are copied: one read, one write, and if the read has not filled
// the buffer there is no more, and the next event tells of what comes. Bulk goes
// by splice(2) through a pipe, which saves the copies.
type side struct {
	conn  *tcpConn
	other *side
	fd    int // -1: none

	// What epoll has said.
	readable, writable bool
	hasEnd             bool // the peer has no more to say: a read that fills nothing is not the last
	urgent             bool // the same, since a read ends before urgent data (tcp(7)); nor can they be spliced
	broken             bool

	full    int    // reads in a row that filled the buffer
	rest    []byte // read, and not written yet
	pipe    *pipe  // nil or borrowed
	drained bool   // the peer's FIN is read
	ended   bool   // and passed on
}

// ready is called by the loop.
func (s *side) ready(events uint32) {
	const in = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	s.readable = s.readable || events&in != 0
	s.writable = s.writable || events&unix.EPOLLOUT != 0
	s.hasEnd = s.hasEnd || events&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0
	s.urgent = s.urgent || events&unix.EPOLLPRI != 0
	s.broken = s.broken || events&unix.EPOLLERR != 0
	s.conn.queue()
}

// carry does what can be done in this direction. more is true where that was not
// all.
func (s *side) carry() (more bool, err error) {
	for range turns {
		switch {
		case s.ended:
			return false, nil
		case s.held() && !s.other.writable:
			return false, nil
		case s.held():
			err = s.flush()
		case s.drained:
			return false, s.passEnd()
		case !s.readable || !s.other.writable:
			return false, nil
		case s.full >= bulkAfter && s.borrow():
			return true, s.fill()
		default:
			err = s.copy()
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// held says whether something has been read and not been written.
func (s *side) held() bool {
	return len(s.rest) > 0 || s.pipe != nil && s.pipe.held > 0
}

// flush writes it.
func (s *side) flush() (err error) {
	var n int
	if len(s.rest) > 0 {
		if n, err = writeSome(s.other.fd, s.rest); err == nil {
			if s.rest = s.rest[n:]; len(s.rest) == 0 {
				s.rest = nil
			}
		}
	} else if n, err = splice(s.pipe.r, s.other.fd, s.pipe.held); err == nil {
		s.pipe.held -= n
	}
	return blocked(err, &s.other.writable)
}

// copy reads and writes once.
func (s *side) copy() error {
	s.release()
	buf := s.conn.proxy.loop.buf
	n, err := readSome(s.fd, buf)
	if err != nil {
		return blocked(err, &s.readable)
	}
	if n == 0 {
		s.drained = true
		return nil
	}
	if n == len(buf) {
		s.full++
	} else {
		s.full = 0
		s.readable = s.hasEnd || s.urgent
	}
	sent, err := writeSome(s.other.fd, buf[:n])
	if err != nil {
		sent = 0
	}
	if sent < n {
		s.rest = slices.Clone(buf[sent:n])
	}
	return blocked(err, &s.other.writable)
}

// fill reads into the pipe, which is empty, and writes what it can.
func (s *side) fill() error {
	n, err := splice(s.fd, s.pipe.w, pipeSize)
	if err != nil {
		s.release()
		return blocked(err, &s.readable)
	}
	s.pipe.held = n
	s.drained = n == 0
	if n < copySize {
		s.full = 0 // not so bulky
	}
	if s.drained {
		return nil
	}
	return s.flush()
}

// blocked notes that a call would have had to wait, and returns other errors.
func blocked(err error, can *bool) error {
	if err == nil || errors.Is(err, unix.EINTR) {
		return nil
	}
	if errors.Is(err, unix.EAGAIN) {
		*can = false
		return nil
	}
	return err
}

// passEnd tells the other peer that this one has no more to say. It may go on
// itself.
func (s *side) passEnd() error {
	s.ended = true
	s.release()
	if s.other.ended {
		return nil // both will be closed
	}
	if c := s.conn; s == &c.client {
		c.spent, _ = localName(c.backend.fd)
	}
	return shutdownWrite(s.other.fd)
}

// borrow has the direction go through a pipe, if it may.
func (s *side) borrow() bool {
	if s.pipe != nil {
		return true
	}
	if s.urgent {
		return false
	}
	s.pipe = s.conn.proxy.loop.pipes.borrow(s.conn.proxy.files)
	if s.pipe == nil {
		s.full = 0 // there may be one later
	}
	return s.pipe != nil
}

// release gives the pipe back.
func (s *side) release() {
	if s.pipe != nil {
		s.conn.proxy.loop.pipes.giveBack(s.pipe, s.conn.proxy.files)
		s.pipe = nil
	}
}
