package proxy

import (
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// flowKey tells flows apart.
type flowKey struct {
	client netip.AddrPort // no zone, not v4-mapped
	local  netip.AddrPort // the same
	// ifindex is the interface where the addresses mean nothing without:
	// link-local IPv6, broadcast and multicast. Elsewhere it is 0, since a
	// flow's datagrams may come by more than one interface.
	ifindex uint32
}

func newFlowKey(client netip.AddrPort, info pktinfo) flowKey {
	k := flowKey{client: client, local: netip.AddrPortFrom(info.dst, info.port)}
	if info.scoped() || needsZone(client.Addr()) {
		k.ifindex = info.ifindex
	}
	return k
}

// flow is one client's exchange with one local address.
type flow struct {
	proxy    *UDP
	key      flowKey
	count    *Counters
	fd       int     // connected to the backend; -1 once the flow is over
	outlet   *outlet // for replies
	front    *front  // of a steered flow, which is its outlet too
	client   address // as the outlet's family has it, with zone; none if that is connected
	requests chain   // in the batch
	up, down int     // the largest datagrams that may share a message, to the backend and the client
	paused   bool    // see waiting

	seen       time.Time // of the table, as is what follows
	prev, next *flow
}

// newFlow opens a flow's socket. The error wraps EMFILE where there is no room
// for one more file.
func (p *UDP) newFlow(key flowKey, client address, to netip.AddrPort) (*flow, error) {
	fd, err := connectUDP(to)
	if err != nil {
		return nil, err
	}
	if !p.files.take(filesOfFlow, othersShare(p.flows.len()), fd) {
		return nil, errors.Join(unix.EMFILE, unix.Close(fd))
	}
	f := &flow{proxy: p, key: key, fd: fd, outlet: &p.outlet, client: client, up: p.loop.segment, down: p.loop.segment}
	err = p.loop.watch(fd, f, unix.EPOLLIN)
	if err == nil && p.steered {
		err = f.openFront()
	}
	if err != nil {
		p.files.give(filesOfFlow)
		return nil, errors.Join(err, p.loop.close(fd))
	}
	enlargeBuffers(fd)
	p.loop.flows++
	return f, nil
}

// end closes the flow's sockets. Its requests that are in the batch go first: they
// came while the flow was there.
func (f *flow) end() {
	l := f.proxy.loop
	if f.requests != (chain{}) {
		l.sendRequests()
	}
	_ = l.close(f.fd)
	f.fd = -1
	f.count.add(flows, -1)
	f.proxy.files.give(filesOfFlow)
	if f.front != nil {
		f.front.close()
	}
	l.flows--
}

// ready takes replies into the batch. Errors of the read are ICMP errors (the
// container is there, its program is not yet, or no more); they are reported
// once each, and the flow outlives them.
func (f *flow) ready(events uint32) {
	o, l := f.outlet, f.proxy.loop
	if o.waiting.some() {
		o.waiting.pause(f, events)
		return
	}
	if slots-l.replies < perFlow {
		if l.sendReplies(); o.waiting.some() {
			return // told again, and paused then
		}
	}
	n, err := l.batch.receiveReplies(f.fd, l.replies, perFlow)
	f.refused(err)
	if err != nil || n == 0 {
		return
	}
	f.proxy.flows.touch(f, l.now)
	for range n {
		l.batch.owner[l.replies] = f
		if o.answers.add(l.batch, l.replies) {
			l.answered = append(l.answered, o)
		}
		l.replies++
	}
}

// refused tells the client of an error of the flow's socket that says that nobody
// listens. Broadcast and multicast are not answered so (RFC 1122 section 3.2.2).
func (f *flow) refused(err error) {
	local := f.key.local.Addr()
	toGroup := local.IsMulticast() || local.Is4() && f.key.ifindex != 0
	if err == nil || toGroup || !errors.Is(err, unix.ECONNREFUSED) {
		return
	}
	f.proxy.loop.unreachable.tell(f.key.client, f.key.local, f.key.ifindex)
}

// connectUDP opens a socket that is connected to a backend.
func connectUDP(to netip.AddrPort) (int, error) {
	name, family, err := newSockname(to)
	if err != nil {
		return -1, err
	}
	fd, err := openSocket(family, unix.SOCK_DGRAM)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := connect(fd, &name); err != nil {
		return -1, errors.Join(os.NewSyscallError("connect", err), closeSocket(fd))
	}
	return fd, nil
}
