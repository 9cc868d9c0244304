package proxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// ServeSteeredUDP is ServeUDP for a socket that receives what is sent to many
// ports, which a BPF program of type sk_lookup steers to it, whatever conn itself
// is bound to. backend is asked with the address and the port that a client used.
//
// Each flow has a socket of its own towards its client as well, bound to the
// address and port that the client used (with SO_REUSEADDR) and connected to it.
// Replies leave from there, which the steered socket cannot do, and requests
// arrive there, past the program: connected sockets are looked up before it. That
// takes a second file for each flow. A program that keeps others from binding
// those ports has to let this process.
//
// MaxFlows bounds the flows of all those ports together.
func ServeSteeredUDP(conn *net.UDPConn, backend BackendFunc, cfg UDPConfig) *UDP {
	p := newUDP(conn, backend, cfg)
	p.steered = true
	p.start()
	return p
}

// front is a flow's socket towards its client.
type front struct {
	outlet
	flow *flow
}

// openFront has f's replies leave from a front. The error wraps EMFILE where
// there is no room for one more file.
func (f *flow) openFront() error {
	p := f.proxy
	fd, err := connectFront(f.key)
	if err != nil {
		return err
	}
	if !p.files.take(filesOfFront, othersShare(p.flows.len()), fd) {
		return errors.Join(unix.EMFILE, closeSocket(fd))
	}
	fr := &front{outlet: outlet{fd: fd}, flow: f}
	if err := p.loop.watch(fd, fr, unix.EPOLLIN); err != nil {
		p.files.give(filesOfFront)
		return errors.Join(err, closeSocket(fd))
	}
	enlargeBuffers(fd)
	f.front, f.outlet, f.client = fr, &fr.outlet, address{}
	return nil
}

// connectFront is a socket between the addresses of a flow. Between bind and
// connect other clients' datagrams may get into it, see front.ready.
func connectFront(k flowKey) (int, error) {
	local, family, err := newSockname(k.scoped(k.local))
	if err != nil {
		return -1, err
	}
	client, _, err := newSockname(k.scoped(k.client))
	if err != nil {
		return -1, err
	}
	fd, err := openSocket(family, unix.SOCK_DGRAM)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = os.NewSyscallError("setsockopt", setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if err == nil {
		err = os.NewSyscallError("bind", bind(fd, &local))
	}
	if err == nil {
		err = os.NewSyscallError("connect", connect(fd, &client))
	}
	if err != nil {
		return -1, errors.Join(err, closeSocket(fd))
	}
	return fd, nil
}

// scoped is one of k's addresses with its interface, if it needs one.
func (k flowKey) scoped(a netip.AddrPort) netip.AddrPort {
	if !needsZone(a.Addr()) {
		return a
	}
	return netip.AddrPortFrom(a.Addr().WithZone(strconv.FormatUint(uint64(k.ifindex), 10)), a.Port())
}

// ready takes requests, which are the flow's but for those that came before its
// socket was connected. Errors of the read are of replies that the client did not
// want.
func (fr *front) ready(events uint32) {
	f := fr.flow
	p, l := f.proxy, f.proxy.loop
	fr.resume(l, events)
	if events&^unix.EPOLLOUT == 0 {
		return
	}
	n, err := l.batch.receiveRequests(fr.fd)
	if err != nil {
		return
	}
	for slot := range n {
		key := f.key
		var ok bool
		if key.client, ok = l.batch.names[slot].addrPort(); ok {
			p.request(slot, key, pktinfo{})
		}
	}
	l.sendRequests()
}

func (fr *front) close() {
	p := fr.flow.proxy
	_ = p.loop.close(fr.fd)
	p.files.give(filesOfFront)
}
