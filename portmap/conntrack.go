package portmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	mdl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/fault"
	"github.com/portolan/portolan/internal/rtnetlink"
)

// flushUDP deletes the UDP conntrack entries that a change of mappings has made
// wrong: those whose original destination is an address of this host and one of
// the mappings' ports, and whose replies do not come from where the port leads
// now. Without it a client that keeps sending stays with the container that has
// gone (moby#8795), or with none.
//
// Entries that are right stay, so that nothing is lost by calling it once more;
// flows to the same port of other hosts are not looked at. The table is read one
// entry at a time: where it is small, as text at first, to see whether there is
// anything to delete.
func flushUDP(sysctlDir string, old Publication, pubs ...Publication) error {
	ports := udpPorts(old, pubs)
	if ports == nil {
		return nil
	}
	var own map[netip.Addr]bool // read when first needed: most tables have no candidate
	var unknown, errs error
	wrong := func(f flow) bool {
		to, known := ports.lookup(f.origDst)
		if f.proto != UDP || !known || f.replySrc == to {
			return false
		}
		if f.origDst.Addr().IsLoopback() {
			return true
		}
		if own == nil && unknown == nil {
			own, unknown = hostAddresses()
		}
		return own[f.origDst.Addr()]
	}
	found := false
	if eachListed(sysctlDir, func(f flow) { found = found || wrong(f) }) && !found {
		return unknown
	}
	conn, err := mdl.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open conntrack netlink socket: %w", err)
	}
	defer conn.Close()
	err = eachFlow(func(f flow) {
		if wrong(f) {
			errs = errors.Join(errs, deleteFlow(conn, f))
			fault.Point("conntrack deleted")
		}
	})
	if err != nil {
		err = fmt.Errorf("read conntrack table: %w", err)
	}
	return errors.Join(unknown, err, errs)
}

// udpTargets says where the UDP ports of a change lead now: what is published
// now, then what was. Mappings of one host address do not overlap, and are
// sorted.
type udpTargets [2]map[netip.Addr][]udpTarget

type udpTarget struct {
	Mapping
	Target // the zero Target: nowhere
}

// udpPorts is nil where no UDP port changes.
func udpPorts(old Publication, pubs []Publication) *udpTargets {
	var ts udpTargets
	found := false
	for i, ps := range [][]Publication{pubs, {old}} {
		ts[i] = map[netip.Addr][]udpTarget{}
		for _, p := range ps {
			held := p.Held() // a routed family's host port may be another's
			if i == 1 {
				p.Target = Target{}
			}
			for _, m := range held {
				if m.Proto == UDP {
					ts[i][m.HostIP] = append(ts[i][m.HostIP], udpTarget{m, p.Target})
					found = true
				}
			}
		}
		for _, list := range ts[i] {
			slices.SortFunc(list, func(a, b udpTarget) int { return compareMappings(a.Mapping, b.Mapping) })
		}
	}
	if !found {
		return nil
	}
	return &ts
}

// lookup is where replies to a flow to dst should come from: the container if
// the kernel carries it there, else dst itself.
func (ts *udpTargets) lookup(dst netip.AddrPort) (netip.AddrPort, bool) {
	for _, byHost := range ts {
		for _, host := range []netip.Addr{dst.Addr(), wildcardOf(dst.Addr()), {}} {
			list := byHost[host]
			i, _ := slices.BinarySearchFunc(list, dst.Port(), func(t udpTarget, p uint16) int {
				if t.HostPortEnd < p {
					return -1
				}
				return 1
			})
			if i < len(list) && list[i].HostPort <= dst.Port() {
				return list[i].replySource(dst), true
			}
		}
	}
	return netip.AddrPort{}, false
}

func (t udpTarget) replySource(dst netip.AddrPort) netip.AddrPort {
	port := t.Port + (dst.Port() - t.HostPort)
	switch a := dst.Addr(); {
	case a.Is4() && t.NAT4(t.Mapping):
		return netip.AddrPortFrom(t.IPv4, port)
	case a.Is6() && t.NAT6(t.Mapping) && !a.IsLoopback() && !a.IsLinkLocalUnicast():
		return netip.AddrPortFrom(t.IPv6, port)
	}
	return dst
}

// hostAddresses are the addresses of this host.
func hostAddresses() (map[netip.Addr]bool, error) {
	addrs, err := rtnetlink.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of this host: %w", err)
	}
	own := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			own[ip.Unmap()] = true
		}
	}
	return own, nil
}

// flow is what matters of a conntrack entry. The raw attributes identify it to
// the kernel.
type flow struct {
	proto             Proto
	origDst, replySrc netip.AddrPort
	rawOrig, rawZone  []byte
}

// Attributes of ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaTupleOrig, ctaTupleReply, ctaZone    = 1, 2, 18
	ctaTupleIP, ctaTupleProto               = 1, 2
	ctaIP4Src, ctaIP4Dst                    = 1, 2
	ctaIP6Src, ctaIP6Dst                    = 3, 4
	ctaProtoNum, ctaSrcPort, ctaDstPort     = 1, 2, 3
	ipctnlMsgNew, ipctnlMsgGet, ipctnlMsgRm = 0, 1, 2
)

// eachFlow reads the conntrack entries of both families, one at a time. A walk
// through the table takes milliseconds even where it is empty, so it is one.
func eachFlow(f func(flow)) error {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|ipctnlMsgGet, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: unix.NFNETLINK_V0})
	return req.ExecuteIter(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_CTNETLINK<<8|ipctnlMsgNew, func(msg []byte) bool {
		if e, ok := parseFlow(msg); ok {
			f(e)
		}
		return true
	})
}

func parseFlow(msg []byte) (f flow, ok bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return f, false
	}
	ad, err := mdl.NewAttributeDecoder(msg[nl.SizeofNfgenmsg:])
	if err != nil {
		return f, false
	}
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleOrig:
			f.rawOrig = ad.Bytes()
			ad.Nested(func(t *mdl.AttributeDecoder) error { return parseTuple(t, &f.proto, nil, &f.origDst) })
		case ctaTupleReply:
			ad.Nested(func(t *mdl.AttributeDecoder) error { return parseTuple(t, &f.proto, &f.replySrc, nil) })
		case ctaZone:
			f.rawZone = ad.Bytes()
		}
	}
	return f, ad.Err() == nil && f.origDst.IsValid() && f.replySrc.IsValid()
}

func parseTuple(t *mdl.AttributeDecoder, proto *Proto, src, dst *netip.AddrPort) error {
	var srcIP, dstIP netip.Addr
	var srcPort, dstPort uint16
	for t.Next() {
		switch t.Type() {
		case ctaTupleIP:
			t.Nested(func(a *mdl.AttributeDecoder) error {
				for a.Next() {
					switch a.Type() {
					case ctaIP4Src, ctaIP6Src:
						srcIP, _ = netip.AddrFromSlice(a.Bytes())
					case ctaIP4Dst, ctaIP6Dst:
						dstIP, _ = netip.AddrFromSlice(a.Bytes())
					}
				}
				return nil
			})
		case ctaTupleProto:
			t.Nested(func(a *mdl.AttributeDecoder) error {
				a.ByteOrder = binary.BigEndian
				for a.Next() {
					switch a.Type() {
					case ctaProtoNum:
						*proto = Proto(a.Uint8())
					case ctaSrcPort:
						srcPort = a.Uint16()
					case ctaDstPort:
						dstPort = a.Uint16()
					}
				}
				return nil
			})
		}
	}
	if src != nil {
		*src = netip.AddrPortFrom(srcIP, srcPort)
	}
	if dst != nil {
		*dst = netip.AddrPortFrom(dstIP, dstPort)
	}
	return nil
}

// deleteFlow removes an entry; one that has gone meanwhile is nil.
func deleteFlow(conn *mdl.Conn, f flow) error {
	attrs := []mdl.Attribute{{Type: ctaTupleOrig | unix.NLA_F_NESTED, Data: f.rawOrig}}
	if f.rawZone != nil {
		attrs = append(attrs, mdl.Attribute{Type: ctaZone, Data: f.rawZone})
	}
	data, err := mdl.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	family := byte(unix.AF_INET6)
	if f.origDst.Addr().Is4() {
		family = unix.AF_INET
	}
	_, err = conn.Execute(mdl.Message{
		Header: mdl.Header{
			Type:  mdl.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | ipctnlMsgRm),
			Flags: mdl.Request | mdl.Acknowledge,
		},
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, data...),
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete conntrack entry to %s: %w", f.origDst, err)
	}
	return nil
}
