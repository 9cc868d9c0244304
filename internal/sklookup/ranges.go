package sklookup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/bpfhost"
)

// portRange is held ports of one host address and family, and what is done with
// what arrives there.
type portRange struct {
	proto       uint8
	host        netip.Addr // or a wildcard
	first, last uint16
	state       uint8
}

// The states of sklookup.bpf.c.
const (
	stateDrop uint8 = iota + 1
	statePass
	stateSteer
	stateSteer6
)

func (r portRange) String() string {
	return fmt.Sprintf("ports %d-%d of %s, protocol %d", r.first, r.last, r.host, r.proto)
}

// hosts are the addresses under which a host is held: the zero Addr is both
// wildcards.
func hosts(host netip.Addr) []netip.Addr {
	if host.IsValid() {
		return []netip.Addr{host.Unmap()}
	}
	return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
}

// Reserve takes the ports first to last of a host address from every other
// process of this network namespace: 0.0.0.0 and :: are every address of a
// family, the zero Addr every address of both. proto is TCP or UDP (6, 17). What
// arrives there is dropped until Steer.
//
// Ranges of one protocol whose hosts overlap must not overlap. The error is an
// *InUseError where another process has one of the ports; after an error nothing
// more is held than before.
func (t *Table) Reserve(proto uint8, host netip.Addr, first, last uint16) error {
	if proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP || first == 0 || last < first || host.Zone() != "" {
		return fmt.Errorf("reserve ports %d-%d of %s, protocol %d: no such ports", first, last, host, proto)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	before := slices.Clone(t.ranges)
	for _, h := range hosts(host) {
		t.ranges = append(t.ranges, portRange{proto, h, first, last, stateDrop})
	}
	// The programs first: nobody binds what is then looked for.
	err := t.update()
	if err == nil {
		err = t.findHolders(proto, host, first, last)
	}
	if err == nil {
		err = t.sysctl.set(t.ranges)
	}
	if err != nil {
		t.ranges = before
		return errors.Join(err, t.update())
	}
	t.follow(true)
	return nil
}

var errClosed = errors.New("ports held by BPF programs: closed")

// Steer has what netfilter leaves of what arrives at held ports led to the
// sockets of Sockets: of IPv4, of IPv6, or, with local6, of IPv6 what is for ::1
// and link-local addresses. The rest finds the sockets that it would find anyway,
// which are connected ones and those of programs that send from such a port.
func (t *Table) Steer(proto uint8, host netip.Addr, first, last uint16, ip4, ip6, local6 bool) error {
	return t.change(proto, host, first, last, func(r *portRange) {
		steered := ip6
		if r.host.Is4() {
			steered = ip4
		}
		switch {
		case steered:
			r.state = stateSteer
		case r.host.Is6() && local6:
			r.state = stateSteer6
		default:
			r.state = statePass
		}
	})
}

// Release gives ports back. Those that are not held are nil.
func (t *Table) Release(proto uint8, host netip.Addr, first, last uint16) error {
	err := t.change(proto, host, first, last, func(r *portRange) { r.state = 0 })
	if errors.Is(err, errClosed) {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.left {
		return err
	}
	err = errors.Join(err, t.sysctl.set(t.ranges))
	t.follow(len(t.ranges) > 0)
	return err
}

// change has f change the held ports among some, of which ranges are parted where
// they reach beyond.
func (t *Table) change(proto uint8, host netip.Addr, first, last uint16, f func(*portRange)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	if t.left {
		return nil
	}
	var now []portRange
	for _, r := range t.ranges {
		if r.proto != proto || !slices.Contains(hosts(host), r.host) || r.last < first || r.first > last {
			now = append(now, r)
			continue
		}
		if r.first < first {
			rest := r
			rest.last = first - 1
			now = append(now, rest)
			r.first = first
		}
		if r.last > last {
			rest := r
			rest.first = last + 1
			now = append(now, rest)
			r.last = last
		}
		if f(&r); r.state != 0 {
			now = append(now, r)
		}
	}
	t.ranges = now
	return t.update()
}

// update takes the kernel's map from what it has to what the ranges ask for: what
// is new before what goes, so that no held port is free in between.
func (t *Table) update() error {
	want := map[programsPortKey]uint8{}
	union := map[uint32][]portRange{} // by protocol and family
	for _, r := range t.ranges {
		for _, key := range r.prefixes(address(r.host)) {
			want[key] = r.state
		}
		family := uint32(r.proto) << 8
		if r.host.Is4() {
			family++
		}
		union[family] = append(union[family], r)
	}
	for _, ranges := range union {
		for _, r := range merged(ranges) {
			for _, key := range r.prefixes(anyHost(r.host)) {
				want[key] = stateDrop
			}
		}
	}
	for key, state := range want {
		if t.kernel[key] == state {
			continue
		}
		if err := t.objs.Ports.Put(key, state); err != nil {
			return fmt.Errorf("hold ports: %w", err)
		}
		t.kernel[key] = state
	}
	for key := range t.kernel {
		if want[key] != 0 {
			continue
		}
		if err := t.objs.Ports.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("give ports back: %w", err)
		}
		delete(t.kernel, key)
	}
	return nil
}

// merged are ranges sorted by port, with those that overlap or touch as one,
// whatever their hosts.
func merged(ranges []portRange) (out []portRange) {
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, func(a, b portRange) int { return int(a.first) - int(b.first) })
	for _, r := range ranges {
		if n := len(out) - 1; n >= 0 && int(r.first) <= int(out[n].last)+1 {
			out[n].last = max(out[n].last, r.last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// Bits of a key of the map of ports.
const (
	portBits = 16
	keyBits  = 128 + 16 + portBits
)

// prefixes are the fewest keys that make up a range: 10000-19999 is 10.
func (r portRange) prefixes(host programsAddress) (keys []programsPortKey) {
	for at, free := range bpfhost.PortBlocks(r.first, r.last) {
		keys = append(keys, programsPortKey{
			Prefixlen: uint32(keyBits - free),
			Host:      host,
			Proto:     uint16(r.proto),
			Port:      bpfhost.NetOrder(at),
		})
	}
	return keys
}

// address is the kernel's form of an address, IPv4 being mapped into IPv6.
func address(a netip.Addr) (out programsAddress) {
	b := a.As16()
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

// anyHost stands for any host of a's family.
func anyHost(a netip.Addr) programsAddress {
	if a.Is4() {
		return address(netip.AddrFrom4([4]byte{255, 255, 255, 255}))
	}
	const all = 0xffffffff
	return programsAddress{W: [4]uint32{all, all, all, all}}
}
