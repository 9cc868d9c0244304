package portmap

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// nftStmt is one statement of a rule: nft's own words for it beside what the
// kernel is sent. The words are what tests and docs compare.
type nftStmt struct {
	text  string
	exprs []expr.Any
}

// nftRule is a rule: its statements, in order.
type nftRule []nftStmt

func (r nftRule) String() string {
	words := make([]string, len(r))
	for i, s := range r {
		words[i] = s.text
	}
	return strings.Join(words, " ")
}

func (r nftRule) exprs() (es []expr.Any) {
	for _, s := range r {
		es = append(es, s.exprs...)
	}
	return es
}

// Linux's numbers that x/sys does not have (include/uapi/linux/netfilter).
const (
	ipsDstNAT      = 1 << 5 // IPS_DST_NAT
	ctEstablished  = 1 << 1 // NF_CT_STATE_BIT(IP_CT_ESTABLISHED)
	ctRelated      = 1 << 2
	ctNew          = 1 << 3
	rejectICMPX    = 2 // NFT_REJECT_ICMPX_UNREACH
	rejectTCPReset = 1 // NFT_REJECT_TCP_RST
	icmpxPort      = 1 // NFT_REJECT_ICMPX_PORT_UNREACH
	metaOIFKind    = expr.MetaKey(27)
	reg32v01       = 9 // the second 32-bit register, NFT_REG32_01
	regNext128     = 2 // the second 128-bit register, NFT_REG_2
)

const (
	offIP4Saddr, offIP4Daddr = 12, 16
	offIP6Saddr, offIP6Daddr = 8, 24
)

func verdict(kind expr.VerdictKind, text string) nftStmt {
	return nftStmt{text, []expr.Any{&expr.Verdict{Kind: kind}}}
}

var (
	stmtAccept = verdict(expr.VerdictAccept, "accept")
	stmtDrop   = verdict(expr.VerdictDrop, "drop")
	stmtReturn = verdict(expr.VerdictReturn, "return")
)

func stmtJump(chain string) nftStmt {
	return nftStmt{"jump " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}}
}

// stmtAcceptMarked accepts, and says so in the packet's mark.
var stmtAcceptMarked = nftStmt{"goto " + chainAcceptMarked, []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chainAcceptMarked}}}

func metaCmp(key expr.MetaKey, op expr.CmpOp, data []byte, text string) nftStmt {
	return nftStmt{text, []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}}
}

// stmtFamily matches IPv4 or IPv6 packets, by an address or prefix of that
// family.
func stmtFamily(is4 bool) nftStmt {
	if is4 {
		return metaCmp(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{unix.NFPROTO_IPV4}, "meta nfproto ipv4")
	}
	return metaCmp(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{unix.NFPROTO_IPV6}, "meta nfproto ipv6")
}

// isOfFamily says whether a rule of the kernel's begins with stmtFamily.
func isOfFamily(r *nftables.Rule, is4 bool) bool {
	return len(r.Exprs) >= 2 && reflect.DeepEqual(r.Exprs[:2], stmtFamily(is4).exprs)
}

func stmtL4(p Proto) nftStmt {
	return metaCmp(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{byte(p)}, "meta l4proto "+p.String())
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func stmtIIF(name string) nftStmt {
	return metaCmp(expr.MetaKeyIIFNAME, expr.CmpOpEq, ifname(name), fmt.Sprintf("iifname %q", name))
}

func stmtNotIIF(name string) nftStmt {
	return metaCmp(expr.MetaKeyIIFNAME, expr.CmpOpNeq, ifname(name), fmt.Sprintf("iifname != %q", name))
}

func stmtNotOIF(name string) nftStmt {
	return metaCmp(expr.MetaKeyOIFNAME, expr.CmpOpNeq, ifname(name), fmt.Sprintf("oifname != %q", name))
}

func stmtIIFGroup(group uint32) nftStmt {
	return metaCmp(expr.MetaKeyIIFGROUP, expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(group), fmt.Sprintf("iifgroup %d", group))
}

func stmtOIFGroup(group uint32) nftStmt {
	return metaCmp(expr.MetaKeyOIFGROUP, expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(group), fmt.Sprintf("oifgroup %d", group))
}

func stmtOIFIsBridge() nftStmt {
	return metaCmp(metaOIFKind, expr.CmpOpEq, ifname("bridge"), `meta oifkind "bridge"`)
}

func stmtInSet(key expr.MetaKey, word string, invert bool, set string) nftStmt {
	op := ""
	if invert {
		op = "!= "
	}
	return nftStmt{fmt.Sprintf("%s %s@%s", word, op, set), []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: set, Invert: invert},
	}}
}

func stmtIIFIn(set string) nftStmt    { return stmtInSet(expr.MetaKeyIIFNAME, "iifname", false, set) }
func stmtOIFIn(set string) nftStmt    { return stmtInSet(expr.MetaKeyOIFNAME, "oifname", false, set) }
func stmtOIFNotIn(set string) nftStmt { return stmtInSet(expr.MetaKeyOIFNAME, "oifname", true, set) }

// stmtIfVmap takes the verdict that a map has for an interface.
func stmtIfVmap(key expr.MetaKey, word, set string) nftStmt {
	return nftStmt{word + " vmap @" + set, []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: set, IsDestRegSet: true, DestRegister: 0},
	}}
}

// addrField is a source or destination address of either family.
type addrField struct {
	word     string
	off, len uint32
	is4      bool
}

func saddr(is4 bool) addrField {
	if is4 {
		return addrField{"ip saddr", offIP4Saddr, 4, true}
	}
	return addrField{"ip6 saddr", offIP6Saddr, 16, false}
}

func daddr(is4 bool) addrField {
	if is4 {
		return addrField{"ip daddr", offIP4Daddr, 4, true}
	}
	return addrField{"ip6 daddr", offIP6Daddr, 16, false}
}

func (f addrField) load(reg uint32) []expr.Any {
	return append(stmtFamily(f.is4).exprs,
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: f.off, Len: f.len})
}

// in matches a prefix; a whole address has no bitwise step.
func (f addrField) in(p netip.Prefix) nftStmt {
	es := f.load(1)
	text := p.Masked().String()
	if p.IsSingleIP() {
		text = p.Addr().String()
	} else {
		mask := make([]byte, f.len)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		es = append(es, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.len, Mask: mask, Xor: make([]byte, f.len)})
	}
	es = append(es, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
	return nftStmt{f.word + " " + text, es}
}

func (f addrField) vmap(set string) nftStmt {
	return nftStmt{f.word + " vmap @" + set, append(f.load(1),
		&expr.Lookup{SourceRegister: 1, SetName: set, IsDestRegSet: true, DestRegister: 0})}
}

func loadDport(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func stmtDportIn(p Proto, set string) nftStmt {
	return nftStmt{p.String() + " dport @" + set, append(stmtL4(p).exprs,
		loadDport(1), &expr.Lookup{SourceRegister: 1, SetName: set})}
}

// stmtProtoDportIn matches a protocol's packets against a set of concatenations
// of protocol and destination port.
func stmtProtoDportIn(p Proto, set string) nftStmt {
	return nftStmt{fmt.Sprintf("meta l4proto %s meta l4proto . th dport @%s", p, set), append(stmtL4(p).exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, loadDport(reg32v01),
		&expr.Lookup{SourceRegister: 1, SetName: set})}
}

// stmtDNAT sends a packet where the map has its destination port: to an
// address, port kept, or to an address and port.
func stmtDNAT(p Proto, is4 bool, set string, withPort bool) nftStmt {
	ip, fam, portReg := "ip", uint32(unix.NFPROTO_IPV4), uint32(reg32v01)
	if !is4 {
		ip, fam, portReg = "ip6", unix.NFPROTO_IPV6, regNext128
	}
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: fam, RegAddrMin: 1}
	to := ip + " to "
	if withPort {
		nat.RegProtoMin, nat.Specified = portReg, true
		to = ip + " addr . port to "
	}
	es := append(stmtL4(p).exprs, loadDport(1),
		&expr.Lookup{SourceRegister: 1, SetName: set, IsDestRegSet: true, DestRegister: 1}, nat)
	return nftStmt{fmt.Sprintf("dnat %s%s dport map @%s", to, p, set), es}
}

// stmtOpenPort matches the container's own address, protocol and port against a
// set of concatenations: the published ports of routed networks.
func stmtOpenPort(is4 bool, set string) nftStmt {
	f := daddr(is4)
	protoReg, portReg := uint32(reg32v01), uint32(reg32v01+1)
	if !is4 {
		protoReg, portReg = 12, 13 // NFT_REG32_04 and _05 follow the 16 bytes of an address
	}
	es := append(f.load(1),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: protoReg},
		loadDport(portReg),
		&expr.Lookup{SourceRegister: 1, SetName: set})
	return nftStmt{f.word + " . meta l4proto . th dport @" + set, es}
}

func ctMatch(key expr.CtKey, bits uint32, text string) nftStmt {
	return nftStmt{text, []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}}
}

var (
	stmtDNATed      = ctMatch(expr.CtKeySTATUS, ipsDstNAT, "ct status dnat")
	stmtEstablished = ctMatch(expr.CtKeySTATE, ctEstablished|ctRelated, "ct state established,related")
	stmtMasquerade  = nftStmt{"masquerade", []expr.Any{&expr.Masq{}}}
)

// stmtNotLocal matches what is not for an address of this host.
func stmtNotLocal() nftStmt {
	return nftStmt{"fib daddr type != local", []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}}
}

// stmtFromLocal matches what has an address of this host as its source.
func stmtFromLocal() nftStmt {
	return nftStmt{"fib saddr type local", []expr.Any{
		&expr.Fib{Register: 1, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}}
}

func stmtSNAT(a netip.Addr) nftStmt {
	ip, fam := "ip", uint32(unix.NFPROTO_IPV4)
	if a.Is6() {
		ip, fam = "ip6", unix.NFPROTO_IPV6
	}
	return nftStmt{fmt.Sprintf("snat %s to %s", ip, a), []expr.Any{
		&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: fam, RegAddrMin: 1},
	}}
}

// stmtSetMark sets one bit of the packet's mark and leaves the others alone.
func stmtSetMark(bit uint32) nftStmt {
	return nftStmt{fmt.Sprintf("meta mark set meta mark | 0x%08x", bit), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^bit), Xor: binaryutil.NativeEndian.PutUint32(bit)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}}
}

// stmtClearMark takes one bit out of the packet's mark.
func stmtClearMark(bit uint32) nftStmt {
	return nftStmt{fmt.Sprintf("meta mark set meta mark & 0x%08x", ^bit), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^bit), Xor: make([]byte, 4)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}}
}

// stmtMarked matches packets whose mark has the bit.
func stmtMarked(bit uint32) nftStmt { return markCmp(bit, bit) }

// stmtNotMarked matches packets whose mark has it not.
func stmtNotMarked(bit uint32) nftStmt { return markCmp(bit, 0) }

func markCmp(mask, value uint32) nftStmt {
	return nftStmt{fmt.Sprintf("meta mark & 0x%08x == 0x%08x", mask, value), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(value)},
	}}
}

// stmtReject refuses as a closed port does: a reset for TCP, port unreachable
// for the others.
func stmtReject(p Proto) nftStmt {
	if p == TCP {
		return nftStmt{"reject with tcp reset", []expr.Any{&expr.Reject{Type: rejectTCPReset}}}
	}
	return nftStmt{"reject", []expr.Any{&expr.Reject{Type: rejectICMPX, Code: icmpxPort}}}
}

func port(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

// nftSet describes a set or map of ours.
type nftSet struct {
	name     string
	key, val nftables.SetDatatype // val is the zero SetDatatype for a set
	interval bool
}

func (s nftSet) String() string {
	typ, kind := s.key.Name, "set"
	if s.val.Name != "" {
		typ, kind = typ+" : "+s.val.Name, "map"
	}
	if s.interval {
		typ += "; flags interval"
	}
	return fmt.Sprintf("%s %s { type %s; }", kind, s.name, typ)
}

func (s nftSet) set(t *nftables.Table) *nftables.Set {
	set := &nftables.Set{Table: t, Name: s.name, KeyType: s.key, DataType: s.val,
		IsMap: s.val.Name != "", Interval: s.interval}
	if s.key == nftables.TypeIFName {
		set.KeyByteOrder = binaryutil.NativeEndian // or nft lists empty names
	}
	return set
}

// stmtEcho matches ICMP echo requests of a family.
func stmtEcho(is4 bool) nftStmt {
	proto, typ, text := byte(unix.IPPROTO_ICMP), byte(8), "icmp type echo-request"
	if !is4 {
		proto, typ, text = unix.IPPROTO_ICMPV6, 128, "icmpv6 type echo-request"
	}
	return nftStmt{text, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{typ}},
	}}
}
