package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// flowKey tells flows apart.
type flowKey struct {
	client netip.AddrPort // no zone, not v4-mapped
	local  netip.Addr     // no zone, not v4-mapped
	// ifindex is the interface where the addresses mean nothing without:
	// link-local IPv6, broadcast and multicast. Elsewhere it is 0, since a
	// flow's datagrams may come by more than one interface.
	ifindex uint32
}

func newFlowKey(client netip.AddrPort, info pktinfo) flowKey {
	k := flowKey{client: client, local: info.dst}
	if info.scoped() || needsZone(client.Addr()) {
		k.ifindex = info.ifindex
	}
	return k
}

// flow is one client's exchange with one local address.
type flow struct {
	proxy    *UDP
	key      flowKey
	fd       int     // connected to the backend; -1 once the flow is over
	client   address // as the frontend's family has it, with zone
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
	if !p.files.take(filesOfFlow, fd) {
		return nil, errors.Join(unix.EMFILE, unix.Close(fd))
	}
	f := &flow{proxy: p, key: key, fd: fd, client: client, up: p.loop.segment, down: p.loop.segment}
	if err := p.loop.watch(fd, f, unix.EPOLLIN); err != nil {
		p.files.give(filesOfFlow)
		return nil, errors.Join(err, unix.Close(fd))
	}
	enlargeBuffers(fd)
	p.loop.flows++
	return f, nil
}

// end closes the flow's socket. Its requests that are in the batch go first: they
// came while the flow was there.
func (f *flow) end() {
	l := f.proxy.loop
	if f.requests != (chain{}) {
		l.sendRequests()
	}
	_ = l.close(f.fd)
	f.fd = -1
	f.proxy.files.give(filesOfFlow)
	l.flows--
}

// ready takes replies into the batch. Errors of the read are ICMP errors (the
// container is there, its program is not yet, or no more); they are reported
// once each, and the flow outlives them.
func (f *flow) ready(events uint32) {
	p, l := f.proxy, f.proxy.loop
	if p.waiting.some() {
		p.waiting.pause(f, events)
		return
	}
	if slots-l.replies < perFlow {
		if l.sendReplies(); p.waiting.some() {
			return // told again, and paused then
		}
	}
	n, err := l.batch.receiveReplies(f.fd, l.replies, perFlow)
	if err != nil || n == 0 {
		return
	}
	p.flows.touch(f, l.now)
	for range n {
		l.batch.owner[l.replies] = f
		if p.answers.add(l.batch, l.replies) {
			l.answered = append(l.answered, p)
		}
		l.replies++
	}
}

// connectUDP opens a socket that is connected to a backend.
func connectUDP(to netip.AddrPort) (int, error) {
	sa, family, err := sockaddr(to)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, sa); err != nil {
		return -1, errors.Join(os.NewSyscallError("connect", err), unix.Close(fd))
	}
	return fd, nil
}

// sockaddr is a with the family of the socket to be connected to it.
func sockaddr(a netip.AddrPort) (unix.Sockaddr, int, error) {
	ip := a.Addr().Unmap()
	switch {
	case ip.Is4():
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}, unix.AF_INET, nil
	case ip.Is6():
		zone, err := zoneID(ip.Zone())
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: ip.As16(), ZoneId: zone}, unix.AF_INET6, err
	}
	return nil, 0, fmt.Errorf("connect to %s: %w", a, unix.EDESTADDRREQ)
}

// zoneID is the interface of a zone, which is its number or its name.
func zoneID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("find interface %s: %w", zone, err)
	}
	return uint32(i.Index), nil
}
