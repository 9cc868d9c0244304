package portmap

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// nftElem is one element of a set or map. It is comparable, so that two
// publications can be compared element by element.
type nftElem struct {
	set     string
	key     string // bytes; the first key of an interval
	end     string // the key after an interval's last; "" for none, and for an interval that ends with the key space
	val     string // bytes of a data map's value
	chain   string // of a verdict map's jump
	comment string
}

// raw is e as the kernel takes it: an interval is two elements.
func (e nftElem) raw(interval bool) []nftables.SetElement {
	el := nftables.SetElement{Key: []byte(e.key), Val: []byte(e.val), Comment: e.comment}
	if e.chain != "" {
		el.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: e.chain}
	}
	if !interval || e.end == "" {
		return []nftables.SetElement{el}
	}
	return []nftables.SetElement{el, {Key: []byte(e.end), IntervalEnd: true}}
}

// ports is the interval of a mapping's host ports. One that ends at 65535 has
// no end: there is no key after it.
func (e nftElem) ports(m Mapping) nftElem {
	e.key = string(port(m.HostPort))
	if m.HostPortEnd < 65535 {
		e.end = string(port(m.HostPortEnd + 1))
	}
	return e
}

// elements are what p adds to the sets of the table. The maps of the host
// addresses that it names have to be there.
func elements(p Publication) (es []nftElem) {
	for _, m := range p.Mappings {
		if p.NAT4(m) {
			es = append(es, natElements(m, p.IPv4, p.Endpoint)...)
		}
		if p.NAT6(m) {
			es = append(es, natElements(m, p.IPv6, p.Endpoint)...)
		}
		if p.Routed4 && p.IPv4.IsValid() && m.Is4() {
			es = append(es, openElements(m, p.IPv4, p.Endpoint)...)
		}
		if p.Routed6 && p.IPv6.IsValid() && m.Is6() {
			es = append(es, openElements(m, p.IPv6, p.Endpoint)...)
		}
		for _, is4 := range families {
			if p.hostOnly(m, is4) {
				es = append(es, hostOnlyElement(m, is4, p.Endpoint))
			}
		}
	}
	return append(es, limitElements(p)...)
}

func hostOnlyElement(m Mapping, is4 bool, comment string) nftElem {
	if m.Len() > 1 {
		return nftElem{set: hostOnlyRanges(m.Proto, is4), comment: comment}.ports(m)
	}
	return nftElem{set: setHostOnly + famDigit(is4), key: protoPort(m.Proto, m.HostPort), comment: comment}
}

// protoPort is a concatenation of protocol and port.
func protoPort(p Proto, number uint16) string {
	return string(padded([]byte{byte(p)})) + string(padded(port(number)))
}

// natElements: a range with equal numbers is one interval, a shifted one an
// element per port, because DNAT to a range of ports does not keep the order.
func natElements(m Mapping, to netip.Addr, comment string) (es []nftElem) {
	addr := string(to.AsSlice())
	if m.Len() > 1 && !m.Shifted() {
		set := portMap(m.Proto, to.Is4(), m.HostIP, false)
		return []nftElem{nftElem{set: set, val: addr, comment: comment}.ports(m)}
	}
	set := portMap(m.Proto, to.Is4(), m.HostIP, true)
	for i := range m.Len() {
		es = append(es, nftElem{
			set: set, key: string(port(m.HostPort + uint16(i))),
			val: addr + string(padded(port(m.Port+uint16(i)))), comment: comment,
		})
	}
	return es
}

func openElements(m Mapping, to netip.Addr, comment string) (es []nftElem) {
	for i := range m.Len() {
		key := string(to.AsSlice()) + protoPort(m.Proto, m.Port+uint16(i))
		es = append(es, nftElem{set: setOpen + famDigit(to.Is4()), key: key, comment: comment})
	}
	return es
}

// padded fills a field of a concatenation up to its 32-bit register.
func padded(b []byte) []byte { return append(b, make([]byte, 4-len(b))...) }

// hostOnly says whether clients of other hosts that reach m's socket in a
// family are refused. What the kernel carries never gets there, but for
// link-local IPv6; IPv4 broadcast does and is welcome.
func (t Target) hostOnly(m Mapping, is4 bool) bool {
	if t.ProxyRemote || !m.Wildcard() || m.Proto == SCTP {
		return false
	}
	if is4 {
		return m.Is4() && !t.Routed4 && !t.IPv4.IsValid()
	}
	return m.Is6() && !t.Routed6
}

// hostMaps are the host addresses that p's mappings name.
func hostMaps(p Publication) (addrs []netip.Addr) {
	for _, m := range p.Mappings {
		if !m.Wildcard() && (p.NAT4(m) || p.NAT6(m)) {
			addrs = append(addrs, m.HostIP)
		}
	}
	return addrs
}

// hostElement sends packets for one host address to its chain. Loopback
// addresses are looked up in the output hook only: nobody else may use them.
func hostElement(a netip.Addr) nftElem {
	set := mapHostAddr + famDigit(a.Is4())
	if a.IsLoopback() {
		set = mapLoopback
	}
	return nftElem{set: set, key: string(a.AsSlice()), chain: hostChain(a)}
}

// networkElements lead to the chains of planNetwork.
func networkElements(n Network) []nftElem {
	br := string(ifname(n.Bridge))
	from := mapFromBridge
	if n.Internal {
		from = mapInternal
	}
	es := []nftElem{
		{set: setBridges, key: br},
		{set: mapToBridge, key: br, chain: chainTo(n)},
		{set: from, key: br, chain: chainFrom(n)},
	}
	for _, f := range n.families() {
		e := nftElem{set: mapSource + famDigit(f.is4), key: string(f.subnet.Masked().Addr().AsSlice()), chain: chainSource(n)}
		if next := lastAddr(f.subnet).Next(); next.IsValid() {
			e.end = string(next.AsSlice())
		}
		es = append(es, e)
	}
	return es
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
