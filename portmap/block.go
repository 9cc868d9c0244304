package portmap

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/portolan/portolan/internal/fault"
	"github.com/portolan/portolan/proxy"
)

// Ranges takes many host ports from every other process at once, without a
// socket for each. Package sklookup has one; a Publisher does without where the
// host cannot.
//
// Hosts are as in Mapping: an address, the wildcard of one family, or the zero
// Addr for every address of both. What was reserved as one may be steered and
// released in parts.
type Ranges interface {
	// Reserve takes the ports first to last. What arrives there is dropped
	// until Steer says otherwise. The error wraps EADDRINUSE where another
	// process has one of them, and may then have the method Taken() (first
	// uint16, more int).
	Reserve(proto uint8, host netip.Addr, first, last uint16) error
	// Steer takes what the kernel's rules leave of what arrives to the sockets
	// of Sockets: of IPv4, of IPv6, or, with local6, of IPv6 only what is for ::1
	// and link-local addresses.
	Steer(proto uint8, host netip.Addr, first, last uint16, ip4, ip6, local6 bool) error
	// Release gives ports back.
	Release(proto uint8, host netip.Addr, first, last uint16) error
	// Sockets opens what Steer leads to, for all ranges together; the caller
	// closes them.
	Sockets() ([]*net.TCPListener, []*net.UDPConn, error)
	// Settle gives up what an earlier process held and nobody has reserved since.
	Settle()
}

// BlockMin is the length from which on a range is held by Ranges, where there
// is one. Below, every port has a socket, which ss(8) shows.
const BlockMin = 1024

// blockShare is how many times the connections and flows of a port all blocks may
// have together. By default that is 8,192 flows: as many as the open files that
// proxies may take of 32,768.
const blockShare = 8

// blocks are the ranges of host ports that Ranges holds, and what serves them.
type blocks struct {
	ranges Ranges
	cfg    proxyConfig
	log    *slog.Logger
	giveUp func(Mapping) // inherited sockets that are in the way

	mu      sync.Mutex // guards below, and changes of served
	waiting bool       // the proxies do, see wait
	proxies []rangesProxy
	served  atomic.Pointer[[]*hostPort]
}

// rangesProxy serves ports of many ranges.
type rangesProxy interface {
	// ResetWhere is Reset for the local addresses that match.
	ResetWhere(match func(local netip.AddrPort) bool)
	Samples() []proxy.Sample
	Close() error
}

// wants says whether m is to be a block from the start.
func (bs *blocks) wants(m Mapping) bool { return m.Len() >= BlockMin && bs.can(m) }

// can says whether m could be one.
func (bs *blocks) can(m Mapping) bool { return bs != nil && (m.Proto == TCP || m.Proto == UDP) }

// reserve takes m's ports.
func (bs *blocks) reserve(m Mapping) (*block, error) {
	bs.giveUp(m)
	if err := bs.ranges.Reserve(uint8(m.Proto), m.HostIP, m.HostPort, m.HostPortEnd); err != nil {
		return nil, err
	}
	return &block{bs}, nil
}

// start adds a port to those that are served, and has the proxies run that serve
// all of them.
func (bs *blocks) start(p *hostPort) error {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	before := bs.list()
	if !slices.Contains(before, p) {
		bs.store(append(slices.Clone(before), p))
	}
	if bs.waiting {
		return nil
	}
	err := bs.run()
	if err != nil {
		bs.store(before)
	}
	return err
}

// run starts the proxies, unless they run.
func (bs *blocks) run() error {
	if bs.proxies != nil {
		return nil
	}
	listeners, conns, err := bs.ranges.Sockets()
	if err != nil {
		return err
	}
	for _, ln := range listeners {
		cfg := bs.cfg.tcp
		cfg.Counters = bs.countersOf(TCP)
		bs.proxies = append(bs.proxies, proxy.ServeTCP(ln, bs.backendOf(TCP), cfg))
	}
	for _, c := range conns {
		cfg := bs.cfg.udp
		cfg.Counters = bs.countersOf(UDP)
		bs.proxies = append(bs.proxies, proxy.ServeSteeredUDP(c, bs.backendOf(UDP), cfg))
	}
	return nil
}

// wait has the proxies not run before settle: who waits for any of the ports is to be
// asked for when all of them are known.
func (bs *blocks) wait() {
	if bs == nil {
		return
	}
	bs.mu.Lock()
	defer bs.mu.Unlock()
	bs.waiting = true
}

// settle ends that, and what an earlier process held.
func (bs *blocks) settle() {
	if bs == nil {
		return
	}
	bs.mu.Lock()
	defer bs.mu.Unlock()
	bs.waiting = false
	if len(bs.list()) > 0 {
		if err := bs.run(); err != nil {
			bs.log.Warn("long ranges are served by the kernel alone, not by the proxy", "err", err)
		}
	}
	bs.ranges.Settle()
}

// stop takes a port out of those that are served, ends what is under way for it,
// and, with the last, the proxies.
func (bs *blocks) stop(p *hostPort) error {
	bs.mu.Lock()
	i := slices.Index(bs.list(), p)
	if i < 0 {
		bs.mu.Unlock()
		return nil
	}
	rest := slices.Delete(slices.Clone(bs.list()), i, i+1)
	bs.store(rest)
	proxies := bs.proxies
	if len(rest) == 0 {
		bs.proxies = nil
	}
	bs.mu.Unlock()
	var err error
	for _, proxy := range proxies {
		if len(rest) > 0 {
			proxy.ResetWhere(p.includes)
		} else {
			err = errors.Join(err, proxy.Close())
		}
	}
	return err
}

// leave ends the proxies, before the ports they serve are closed one by one: who
// comes meanwhile waits for the next process, if there is one.
func (bs *blocks) leave() error {
	if bs == nil {
		return nil
	}
	bs.mu.Lock()
	defer bs.mu.Unlock()
	var err error
	for _, p := range bs.proxies {
		err = errors.Join(err, p.Close())
	}
	bs.proxies = nil
	bs.store(nil)
	return err
}

// parted has parts of a port served as it was.
func (bs *blocks) parted(p *hostPort, parts ...*hostPort) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if i := slices.Index(bs.list(), p); i >= 0 {
		bs.store(slices.Replace(slices.Clone(bs.list()), i, i+1, parts...))
	}
}

func (bs *blocks) store(list []*hostPort) {
	for _, p := range list {
		if p.counts == nil {
			p.counts = new(proxy.Counters)
		}
	}
	bs.served.Store(&list)
}

// backendOf finds the container's side of what came to a local address.
func (bs *blocks) backendOf(p Proto) proxy.BackendFunc {
	return func(local netip.AddrPort) (netip.AddrPort, bool) {
		if port := bs.find(p, local); port != nil {
			return port.backend(local)
		}
		return netip.AddrPort{}, false
	}
}

// countersOf finds the counters of what came to a local address.
func (bs *blocks) countersOf(p Proto) proxy.CountersFunc {
	return func(local netip.AddrPort) *proxy.Counters {
		if port := bs.find(p, local); port != nil {
			return port.counts
		}
		return nil
	}
}

// find is the port that is served at a local address, nil for none.
func (bs *blocks) find(p Proto, local netip.AddrPort) *hostPort {
	for _, port := range bs.list() {
		if port.Proto == p && port.includes(local) {
			return port
		}
	}
	return nil
}

// includes says whether a local address is one of m's.
func (m Mapping) includes(local netip.AddrPort) bool {
	if local.Port() < m.HostPort || local.Port() > m.HostPortEnd {
		return false
	}
	ip := local.Addr().Unmap().WithZone("")
	return ip == m.HostIP || m.Wildcard() && (ip.Is4() && m.Is4() || ip.Is6() && m.Is6())
}

func (bs *blocks) list() []*hostPort {
	if l := bs.served.Load(); l != nil {
		return *l
	}
	return nil
}

// reset ends what the proxies have under way for m.
func (bs *blocks) reset(m Mapping) {
	bs.mu.Lock()
	proxies := bs.proxies
	bs.mu.Unlock()
	for _, p := range proxies {
		p.ResetWhere(m.includes)
	}
}

// block is a lease's hold on its range.
type block struct{ all *blocks }

// serve has the proxies serve what of p the rules do not carry; moved says that
// what is under way leads elsewhere.
func (b *block) serve(p *hostPort, t Target, moved bool) error {
	if err := b.all.start(p); err != nil {
		return err
	}
	if moved {
		b.all.reset(p.Mapping)
	}
	ip4, ip6 := t.served(p.Mapping)
	// What the rules translate is left alone, so that answers to this host's own
	// sockets reach them. No broadcast passes a socket look-up.
	nat4, nat6 := t.NAT4(p.Mapping), t.NAT6(p.Mapping)
	fault.Point("serve block")
	return b.all.ranges.Steer(uint8(p.Proto), p.HostIP, p.HostPort, p.HostPortEnd, ip4 && !nat4, ip6 && !nat6, ip6)
}

// close gives the range back.
func (b *block) close(p *hostPort) error {
	return errors.Join(b.release(p.Mapping), b.all.stop(p))
}

func (b *block) release(m Mapping) error {
	return b.all.ranges.Release(uint8(m.Proto), m.HostIP, m.HostPort, m.HostPortEnd)
}
