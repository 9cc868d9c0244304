package hooks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/portolan/portolan/internal/bpfhost"
)

// ports are a range of published host ports, as Set names them.
type ports struct {
	proto       uint8
	host        netip.Addr
	first, last uint16
}

// backend is where a range leads.
type backend struct {
	to  netip.AddrPort // the container's side of its first port
	via netip.Addr     // for connected UDP sockets
}

func (p ports) String() string {
	return fmt.Sprintf("[%s]:%d-%d of protocol %d", p.host, p.first, p.last, p.proto)
}

// Set sends this host's IPv6 clients of the host ports first to last of an IP
// protocol (TCP or UDP) to a backend, of which the first port is given; the
// others follow in order. host is an IPv6 address, or :: for all that this host
// has. What the range had as backend before is replaced.
//
// A connected UDP socket would stay with a backend that the port has left. It is
// sent to the same port of via instead, an address of this host where the kernel
// translates, as netfilter does; the zero Addr leaves it alone.
//
// Ranges of one protocol and address must not overlap. After an error the range
// has no backend.
func (h *Hooks) Set(proto uint8, host netip.Addr, first, last uint16, to netip.AddrPort, via netip.Addr) error {
	p, b := ports{proto, host, first, last}, backend{to, via}
	if !host.Is6() || host.Is4In6() || !to.IsValid() || first == 0 || last < first {
		return fmt.Errorf("redirect %s to %s: not a range of IPv6 ports and a backend", p, to)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return fmt.Errorf("redirect %s: closed", p)
	}
	if h.set[p] == b {
		return nil
	}
	h.set[p] = b
	value := programsRange{Backend: address(to.Addr()), HostFirst: first, First: to.Port()}
	if via.IsValid() {
		value.Via = address(via)
	}
	for _, key := range p.prefixes() {
		if err := h.objs.Ranges.Put(key, value); err != nil {
			return errors.Join(fmt.Errorf("redirect %s to %s: %w", p, to, err), h.delete(p))
		}
	}
	return nil
}

// Delete leaves a range that Set has set alone again. One that is not set is
// nil.
func (h *Hooks) Delete(proto uint8, host netip.Addr, first, last uint16) error {
	p := ports{proto, host, first, last}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.set[p]; !known || h.closed {
		return nil
	}
	return h.delete(p)
}

func (h *Hooks) delete(p ports) (err error) {
	delete(h.set, p)
	for _, key := range p.prefixes() {
		if e := h.objs.Ranges.Delete(key); e != nil && !errors.Is(e, ebpf.ErrKeyNotExist) {
			err = errors.Join(err, fmt.Errorf("stop redirecting %s: %w", p, e))
		}
	}
	return err
}

// Bits of a key of the map of ranges.
const (
	portBits = 16
	keyBits  = 128 + 16 + portBits
)

// prefixes are the fewest keys that make up a range: 10000-19999 is 10.
func (p ports) prefixes() (keys []programsRangeKey) {
	host := address(p.host)
	for at, free := range bpfhost.PortBlocks(p.first, p.last) {
		keys = append(keys, programsRangeKey{
			Prefixlen: uint32(keyBits - free),
			Host:      host,
			Proto:     uint16(p.proto),
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
