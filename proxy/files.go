package proxy

import (
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keptBack is how many open files are left to the rest of the process: its
// state, its netlink sockets, those who ask it.
const keptBack = 64

const (
	filesOfConn  = 2 // two sockets
	filesOfPipe  = 2 // of a direction that is bulk: its two ends
	filesOfFlow  = 1
	filesOfFront = 1 // of a steered flow
)

// Files bounds the open files that the traffic of all proxies that share it may
// take: half of the process's limit (RLIMIT_NOFILE), and none of what is kept
// back. Clients then cannot take what publishing a port needs. Nor does one port
// get more than half of what it leaves to all others (dynamic thresholds, as
// switches share their buffers: Choudhury and Hahne, 1998): clients who fill one
// port after the other leave a third less each time, and not nothing. The zero
// Files is ready, and nil bounds nothing.
type Files struct {
	taken atomic.Int64
}

// othersShare is what a port that has so many files must leave to all others to
// get one more.
func othersShare(has int) int64 { return int64(2 * has) }

// take counts n files for the socket fd, which has just been opened and is one of
// them, if so many are left then. Where it is false there is no room, and nothing
// is counted.
func (f *Files) take(n, leave int64, fd int) bool {
	if f == nil {
		return true
	}
	if KeptBack(fd) {
		return false
	}
	rest := int64(openFiles()/2) - f.taken.Add(n)
	if rest < leave {
		f.taken.Add(-n)
		return false
	}
	return true
}

// takePipe is take for a pipe, without which a connection does as well. The last
// eighth is not for pipes.
func (f *Files) takePipe(fd int) bool {
	return f.take(filesOfPipe, int64(openFiles()/2/8), fd)
}

// Taken is how many files the traffic has now.
func (f *Files) Taken() int { return int(f.taken.Load()) }

func (f *Files) give(n int64) {
	if f != nil {
		f.taken.Add(-n)
	}
}

// MostConns is how many connections all proxies that share a Files may have
// together, as far as the process's limit of now goes.
func MostConns() int { return openFiles() / 2 / filesOfConn }

// KeptBack says whether a file descriptor is one of the last 64 that this
// process may have, or of the last quarter where there are so few: those are not
// for ports and not for traffic. The kernel gives out the lowest number that is
// free (POSIX), so that a high one tells how many are taken.
func KeptBack(fd int) bool {
	limit := openFiles()
	return fd >= limit-min(keptBack, limit/4)
}

func openFiles() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // the least that Linux starts a process with
	}
	return int(min(limit.Cur, 1<<30)) // RLIM_INFINITY
}

// fdOf is c's file descriptor, for looking at the number. A closed one has -1.
func fdOf(c syscall.Conn) int {
	n := -1
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { n = int(fd) })
	}
	return n
}

// sparsely is for what any client can bring about as often as it likes: it must
// not fill the log. The zero value is ready.
type sparsely struct{ last time.Time }

// now is true once a second at most.
func (s *sparsely) now() bool {
	if !s.last.IsZero() && time.Since(s.last) < time.Second {
		return false
	}
	s.last = time.Now()
	return true
}
