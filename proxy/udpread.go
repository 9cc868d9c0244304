package proxy

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// The methods of this file are the loop's, which has the hub's lock.

// ready is called by the loop.
func (p *UDP) ready(events uint32) {
	p.outlet.resume(p.loop, events)
	if events&^unix.EPOLLOUT != 0 {
		p.read()
	}
}

// read sends on what waits at the frontend, at most a batch.
func (p *UDP) read() {
	l := p.loop
	n, err := p.receive(l.batch, p.fd)
	if err != nil {
		if err = ignore(err); err != nil {
			p.pause(err)
		}
		return
	}
	p.wait = 0
	for slot := range n {
		client, ok := l.batch.names[slot].addrPort()
		if !ok {
			continue
		}
		info := parsePktinfo(l.batch.oob(slot), p.local)
		p.request(slot, newFlowKey(client, info), info)
	}
	l.sendRequests()
}

// request has what is in a slot be sent on.
func (p *UDP) request(slot int, key flowKey, info pktinfo) {
	l := p.loop
	f := p.flows.lookup(key)
	if f == nil {
		if f = p.open(key, info, l.batch.sender(slot)); f == nil {
			return
		}
	}
	if f.requests.add(l.batch, slot) {
		l.asked = append(l.asked, f)
		p.flows.touch(f, l.now)
	}
}

// pause leaves the frontend alone for a while after an error of reading, which
// would only be met again.
func (p *UDP) pause(err error) {
	if p.failing.now() {
		p.log.Warn("read datagrams", "frontend", p.local, "err", err)
	}
	p.loop.unwatch(p.fd)
	p.retry = p.loop.now.Add(p.wait.next())
	p.schedule()
}

// open makes a flow, or nil if its datagram is to be dropped. The flow is in
// the table only once nothing can fail any more.
func (p *UDP) open(key flowKey, info pktinfo, client address) *flow {
	to, ok := p.backend(key.local)
	if !ok {
		p.tally.at(key.local).add(datagramsDropped, 1)
		p.log.Debug("drop datagram without backend", "frontend", key.local, "client", key.client)
		return nil
	}
	client.source = info.source(key.ifindex)
	count := p.tally.at(key.local)
	f, err := p.newFlow(key, client, to)
	if idlest := p.flows.idlest(); errors.Is(err, unix.EMFILE) && idlest != nil {
		idlest.count.add(evictedFiles, 1)
		p.endFlow(idlest)
		f, err = p.newFlow(key, client, to)
	}
	if err != nil {
		count.add(flowsRefused, 1)
		count.add(datagramsDropped, 1)
		if p.failing.now() {
			p.log.Warn("open flow", "frontend", key.local, "client", key.client, "backend", to, "err", err)
		}
		return nil
	}
	if p.flows.len() >= p.maxFlows {
		idlest := p.flows.idlest()
		idlest.count.add(evictedLimit, 1)
		p.endFlow(idlest)
	}
	f.count = count
	count.add(flows, 1)
	count.add(flowsTotal, 1)
	p.flows.insert(f, p.loop.now)
	if p.place == 0 {
		p.schedule()
	}
	return f
}

// tick does what is due: ends flows that were idle for too long, and reads again
// after an error.
func (p *UDP) tick() {
	l := p.loop
	for f := p.flows.expired(p.idle, l.now); f != nil; f = p.flows.expired(p.idle, l.now) {
		p.endFlow(f)
	}
	if l.flows == 0 {
		l.batch.forget()
	}
	if !p.retry.IsZero() && !p.retry.After(l.now) {
		p.retry = time.Time{}
		if err := l.watch(p.fd, p, p.outlet.events()); err != nil {
			p.retry = l.now.Add(p.wait.next())
		}
	}
	p.schedule()
}

// schedule says when tick is to be called. Datagrams do not move that time, so
// it may be too early.
func (p *UDP) schedule() {
	due := p.retry
	if f := p.flows.idlest(); f != nil {
		if end := f.seen.Add(p.idle); due.IsZero() || end.Before(due) {
			due = end
		}
	}
	p.loop.due.set(p, due)
}
