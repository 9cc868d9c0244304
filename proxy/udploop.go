package proxy

import (
	"time"

	"golang.org/x/sys/unix"
)

// perFlow is how many replies of one flow are read at a time, so that one busy
// backend leaves room for the others.
const perFlow = 16

var udpHub = hub[*udpLoop]{open: newUDPLoop}

// udpLoop carries the datagrams of all proxies.
type udpLoop struct {
	loop
	segment     int // the largest datagram that may share a message; 0: this kernel has no UDP_SEGMENT
	flows       int // guarded by the hub
	unreachable unreachable

	// Of a round.
	batch    *batch
	out      outbox
	asked    []*flow   // have requests in batch
	replies  int       // in batch
	answered []*outlet // have replies in batch
}

func newUDPLoop() (*udpLoop, error) {
	l := &udpLoop{}
	if err := l.init(); err != nil {
		return nil, err
	}
	var err error
	if l.batch, err = newBatch(); err == nil {
		l.segment, err = segmentLimit()
	}
	if err != nil {
		l.free()
		return nil, err
	}
	return l, nil
}

func (l *udpLoop) free() {
	l.loop.free()
	l.unreachable.close()
	if l.batch != nil {
		l.out = outbox{} // see batch.free
		l.batch.free()
	}
}

// round carries what is ready. An event may be of a socket that was closed since,
// by somebody else or for another in this round; then its number has no source,
// or a new one, which finds nothing to read.
func (l *udpLoop) round(events []unix.EpollEvent) {
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
	l.tick()
}

// sendRequests sends what is in the batch to backends. What cannot leave at once
// is dropped: waiting would hold up every other flow.
func (l *udpLoop) sendRequests() {
	for i, f := range l.asked {
		l.asked[i] = nil
		f.requests.each(l.batch, func(slot int) { l.out.add(l.batch.data(slot), f, nil, &f.up) })
		l.out.send(f.fd, dropRequest)
	}
	l.asked = l.asked[:0]
}

func dropRequest(f *flow, _ *unix.Iovec) { f.count.add(datagramsDropped, 1) }

// sendReplies sends what is in the batch to clients, by one call for each
// outlet.
func (l *udpLoop) sendReplies() {
	for i, o := range l.answered {
		l.answered[i] = nil
		o.answers.each(l.batch, func(slot int) {
			f := l.batch.owner[slot]
			l.out.add(l.batch.data(slot), f, &f.client, &f.down)
		})
		l.out.send(o.fd, o.waiting.add)
		if o.waiting.some() {
			l.rewatch(o.fd, o.events())
		}
	}
	clear(l.batch.owner[:l.replies])
	l.answered, l.replies = l.answered[:0], 0
}
