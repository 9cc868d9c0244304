package proxy

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
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

// newFlowKey is false if from is not an IP address.
func newFlowKey(from unix.Sockaddr, info pktinfo) (flowKey, bool) {
	k := flowKey{local: info.dst}
	switch sa := from.(type) {
	case *unix.SockaddrInet4:
		k.client = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		k.client = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	default:
		return flowKey{}, false
	}
	if info.scoped() || needsZone(k.client.Addr()) {
		k.ifindex = info.ifindex
	}
	return k, true
}

// flow is one client's exchange with one local address. Its goroutine carries
// replies; requests are carried by the frontend's.
type flow struct {
	proxy *UDP
	key   flowKey
	conn  *net.UDPConn // connected to the backend
	raw   syscall.RawConn

	client unix.Sockaddr // as the frontend's family has it, with zone
	source []byte        // control message: the reply's source address

	// Method values are made once and datagrams passed in fields, because a
	// closure for each datagram would be an allocation for each.
	request   []byte // of the frontend's goroutine
	sendFunc  func(fd uintptr) bool
	reply     []byte // of run
	replyFunc func(fd uintptr) bool
	drainFunc func(fd uintptr) bool

	seen       time.Time // guarded by the table, as is what follows
	prev, next *flow
}

// newFlow opens a flow's socket. The error wraps EMFILE where there is no room
// for one more file.
func (p *UDP) newFlow(key flowKey, from unix.Sockaddr, info pktinfo, to netip.AddrPort) (*flow, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil, err
	}
	if !p.files.take(filesOfFlow, conn) {
		return nil, errors.Join(unix.EMFILE, conn.Close())
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = conn.SetReadDeadline(time.Now().Add(p.idle))
	}
	if err != nil {
		p.files.give(filesOfFlow)
		return nil, errors.Join(err, conn.Close())
	}
	enlargeBuffers(raw)
	f := &flow{proxy: p, key: key, conn: conn, raw: raw, client: from, source: info.source(key.ifindex)}
	f.sendFunc, f.replyFunc, f.drainFunc = f.sendNow, f.replyNow, f.drain
	return f, nil
}

// close ends run. When it returns, no reply is under way any more.
func (f *flow) close() {
	if f.conn.Close() == nil { // not closed before
		f.proxy.files.give(filesOfFlow)
	}
}

// send sends a datagram to the backend, or drops it if that is not possible at
// once: waiting would hold up every other flow of the frontend.
func (f *flow) send(b []byte) {
	f.request = b
	_ = f.raw.Write(f.sendFunc) // an error means closed: the flow has just ended
	f.request = nil
}

func (f *flow) sendNow(fd uintptr) bool {
	// Twice, because an ICMP error that an earlier datagram caused is reported
	// by the next write, which then sends nothing.
	for range 2 {
		if _, err := unix.Write(int(fd), f.request); err == nil || err == unix.EAGAIN {
			break
		}
	}
	return true
}

// run carries replies until the flow is closed or has been idle for too long.
func (f *flow) run() {
	defer f.proxy.wg.Done()
	defer f.close()
	for {
		err := f.raw.Read(f.drainFunc)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			// The deadline is not moved for each datagram, only when it comes.
			until := f.proxy.flows.expire(f, f.proxy.idle)
			if until.IsZero() || f.conn.SetReadDeadline(until) != nil {
				return
			}
		default:
			f.proxy.flows.remove(f)
			return
		}
	}
}

// drain carries the replies that wait, at most a batch; see UDP.drain. Errors
// of the read are ICMP errors (the container is there, its program is not yet,
// or no more); they are reported once each, and the flow outlives them.
func (f *flow) drain(fd uintptr) bool {
	b := takeBuffer()
	defer b.put()
	touched := false
	for range batch {
		n, err := unix.Read(int(fd), b.data[:])
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			continue
		}
		if !touched {
			f.proxy.flows.touch(f)
			touched = true
		}
		f.reply = b.data[:n]
		closed := f.proxy.raw.Write(f.replyFunc)
		f.reply = nil
		if closed != nil {
			break // the frontend is closed, and this flow about to be
		}
	}
	return true
}

// replyNow sends a reply to the client. Unlike a request it waits for room:
// that holds up this flow alone. Other errors lose the reply, as the network
// might: the route is gone, or it is too long for the client's family.
func (f *flow) replyNow(fd uintptr) bool {
	_, err := unix.SendmsgN(int(fd), f.reply, f.source, f.client, unix.MSG_DONTWAIT)
	return err != unix.EAGAIN
}
