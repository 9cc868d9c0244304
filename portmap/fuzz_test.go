package portmap

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"testing"

	"github.com/google/nftables/expr"
	mdl "github.com/mdlayher/netlink"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// FuzzIPTablesRule reads any line as a rule of one of our chains, as iptables -S
// prints them: others may have written there.
func FuzzIPTablesRule(f *testing.F) {
	for _, rule := range []string{
		`-p udp -m udp --dport 53 -m comment --comment 3f2a91c04b7e -j DNAT --to-destination 172.20.0.2`,
		`-d 127.0.0.1/32 -p tcp -m tcp --dport 8000:8010 -m comment --comment "e 1" -j DNAT --to-destination 172.20.0.2:80-90/8000`,
		`-p sctp -m sctp --dport 5000 -m comment --comment e -j DNAT --to-destination [fd00::2]:5001`,
		`-p udp --dport 70000`, `--to-destination :`, `-p`, `-d x -p 17`,
	} {
		f.Add(true, rule)
		f.Add(false, rule)
	}
	f.Fuzz(func(t *testing.T, is4 bool, rule string) {
		pubs := map[string]*Publication{}
		if err := iptParseInto(pubs, is4, rule); err != nil {
			require.Empty(t, pubs)
			return
		}
		require.Len(t, pubs, 1)
		for _, p := range pubs {
			require.Len(t, iptMergeFamilies(p.Mappings), 1)
		}
	})
}

// FuzzFlow reads any message as a conntrack entry of the kernel's. Nothing
// panics, and what is taken has the addresses by which it is judged.
func FuzzFlow(f *testing.F) {
	for _, to := range []string{"198.51.100.1:5300", "[2001:db8:1::1]:5300"} {
		f.Add(flowMessage(f, netip.MustParseAddrPort(to), UDP, true))
		f.Add(flowMessage(f, netip.MustParseAddrPort(to), TCP, false))
	}
	f.Add([]byte{unix.AF_INET, 0, 0, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		e, ok := parseFlow(msg)
		if !ok {
			return
		}
		assert.True(t, e.origDst.Addr().IsValid())
		assert.True(t, e.replySrc.Addr().IsValid())
		assert.NotEmpty(t, e.rawOrig, "the kernel could not be told which to delete")
	})
}

// flowMessage is an entry as the kernel dumps it, to an address of this host.
func flowMessage(t testing.TB, to netip.AddrPort, proto Proto, zone bool) []byte {
	marshal := func(as ...mdl.Attribute) []byte {
		b, err := mdl.MarshalAttributes(as)
		require.NoError(t, err)
		return b
	}
	src, dst := uint16(ctaIP6Src), uint16(ctaIP6Dst)
	if to.Addr().Is4() {
		src, dst = ctaIP4Src, ctaIP4Dst
	}
	number := func(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }
	tuple := func(kind uint16, from, to netip.AddrPort) mdl.Attribute {
		return mdl.Attribute{Type: kind | unix.NLA_F_NESTED, Data: marshal(
			mdl.Attribute{Type: ctaTupleIP | unix.NLA_F_NESTED, Data: marshal(
				mdl.Attribute{Type: src, Data: from.Addr().AsSlice()}, mdl.Attribute{Type: dst, Data: to.Addr().AsSlice()})},
			mdl.Attribute{Type: ctaTupleProto | unix.NLA_F_NESTED, Data: marshal(
				mdl.Attribute{Type: ctaProtoNum, Data: []byte{byte(proto)}},
				mdl.Attribute{Type: ctaSrcPort, Data: number(from.Port())}, mdl.Attribute{Type: ctaDstPort, Data: number(to.Port())})})}
	}
	client := netip.AddrPortFrom(to.Addr().Next(), 40000)
	as := []mdl.Attribute{tuple(ctaTupleOrig, client, to), tuple(ctaTupleReply, to, client)}
	if zone {
		as = append(as, mdl.Attribute{Type: ctaZone, Data: number(7)})
	}
	return append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, marshal(as...)...)
}

// FuzzListed reads any line as one of net/nf_conntrack. What is taken for a UDP
// entry reads the same in as few words as say it.
func FuzzListed(f *testing.F) {
	for _, line := range []string{
		"ipv4     2 udp      17 29 src=127.0.0.1 dst=127.0.1.9 sport=33333 dport=53 [UNREPLIED] src=172.20.0.2 dst=127.0.0.1 sport=5353 dport=33333 mark=0 zone=0 use=2",
		"ipv6     10 udp      17 29 src=fd00::1 dst=fd00::2 sport=1 dport=2 src=fd00::2 dst=fd00::1 sport=2 dport=1 [ASSURED] mark=0 use=2",
		"ipv4     2 tcp      6 431999 ESTABLISHED src=192.0.2.1 dst=192.0.2.2 sport=1 dport=2 src=192.0.2.2 dst=192.0.2.1 sport=2 dport=1 [ASSURED] mark=0 use=2",
		"ipv4 2 udp 17 src= dst= src= dst= sport= dport=", "a b c 17 = = =", "",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		e, isUDP, ok := parseListed(line)
		if !ok || !isUDP {
			return
		}
		require.True(t, e.origDst.IsValid())
		require.True(t, e.replySrc.IsValid())
		short := "ipv4 2 udp 17 src=- dst=" + e.origDst.Addr().String() + " sport=- dport=" + strconv.Itoa(int(e.origDst.Port())) +
			" src=" + e.replySrc.Addr().String() + " dst=- sport=" + strconv.Itoa(int(e.replySrc.Port())) + " dport=-"
		again, isUDP, ok := parseListed(short)
		require.True(t, ok && isUDP, "%s", short)
		require.Equal(t, e, again)
	})
}

// FuzzKernelRule reads any message as a rule of nftables: others write the rules of
// DOCKER-USER. Whatever is read can be asked what Portolan asks.
func FuzzKernelRule(f *testing.F) {
	attributes := func(as ...mdl.Attribute) []byte {
		b, err := mdl.MarshalAttributes(as)
		require.NoError(f, err)
		return b
	}
	expression := func(name string, data ...mdl.Attribute) mdl.Attribute {
		return mdl.Attribute{Type: unix.NFTA_LIST_ELEM, Data: attributes(
			mdl.Attribute{Type: unix.NFTA_EXPR_NAME, Data: []byte(name + "\x00")}, mdl.Attribute{Type: unix.NFTA_EXPR_DATA, Data: attributes(data...)})}
	}
	counter := expression("counter", mdl.Attribute{Type: unix.NFTA_COUNTER_PACKETS, Data: []byte{0, 0, 0, 0, 0, 0, 0, 7}})
	direction := expression("ct", mdl.Attribute{Type: unix.NFTA_CT_DIRECTION, Data: []byte{0}})
	f.Add(attributes(
		mdl.Attribute{Type: unix.NFTA_RULE_HANDLE, Data: []byte{0, 0, 0, 0, 0, 0, 0, 9}},
		mdl.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: []byte("\x00\x09portolan\x00")},
		mdl.Attribute{Type: unix.NFTA_RULE_EXPRESSIONS, Data: attributes(counter, direction)},
	))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		r, err := parseKernelRule(msg)
		if err != nil {
			return
		}
		_, _, _ = r.packets(), r.comment(), r.leadsToDockerUser()
		_ = r.isPlain(expr.Verdict{Kind: expr.VerdictAccept})
	})
}
