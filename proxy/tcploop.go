package proxy

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

var tcpHub = hub[*tcpLoop]{open: newTCPLoop}

// tcpLoop carries the connections of all proxies.
type tcpLoop struct {
	loop
	buf   []byte // what is read, until it is sent
	pipes pipes
	spent spent

	// Of a round.
	todo, done []*tcpConn // have something to carry
	waiting    []*TCP     // have connections to accept
}

// copySize is how many bytes are read at a time by a connection that is not bulk.
const copySize = 16 << 10

func newTCPLoop() (*tcpLoop, error) {
	l := &tcpLoop{buf: make([]byte, copySize)}
	if err := l.init(); err != nil {
		return nil, fmt.Errorf("carry connections: %w", err)
	}
	return l, nil
}

func (l *tcpLoop) free() {
	l.loop.free()
	l.pipes.close()
}

// round first learns what is ready, then carries, and accepts last. So a number
// of an event is still that socket's, or nobody's.
func (l *tcpLoop) round(events []unix.EpollEvent) {
	l.now = time.Now()
	for _, ev := range events {
		if s := l.sources[ev.Fd]; s != nil {
			s.ready(ev.Events)
		}
	}
	l.todo, l.done = l.done[:0], l.todo
	for i, c := range l.done {
		l.done[i] = nil
		c.run()
	}
	for i, p := range l.waiting {
		l.waiting[i] = nil
		p.take()
	}
	l.waiting = l.waiting[:0]
	l.tick()
}

// timeout is 0 as long as anybody has more to carry.
func (l *tcpLoop) timeout() int {
	if len(l.todo) > 0 {
		return 0
	}
	return l.loop.timeout()
}
