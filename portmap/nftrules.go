package portmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// kernelRule is a rule as the kernel has it, whoever made it. What is not asked
// for is not decoded: google/nftables v0.3.0 leaves out the expressions that it
// does not know, and cannot read a rule with a direction (ct original …), which
// is one byte and not four.
type kernelRule struct {
	handle uint64
	exprs  []kernelExpr
	user   []byte // NFTA_RULE_USERDATA
}

type kernelExpr struct {
	name string
	data []byte // NFTA_EXPR_DATA
}

// kernelRules are those of a chain, in order. A chain that is not there has none.
func (c *nftConn) kernelRules(table *nftables.Table, chain string) (rules []kernelRule, err error) {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(table.Name + "\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte(chain + "\x00")},
	})
	if err != nil {
		return nil, err
	}
	reply, err := c.raw.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE), Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(table.Family), unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	for _, msg := range reply {
		var r kernelRule
		if r, err = parseKernelRule(msg.Data[4:]); err != nil {
			break
		}
		rules = append(rules, r)
	}
	if err != nil {
		return nil, fmt.Errorf("list rules of chain %s: %w", chain, err)
	}
	return rules, nil
}

func parseKernelRule(b []byte) (r kernelRule, err error) {
	err = eachAttribute(b, func(a *netlink.AttributeDecoder) error {
		switch a.Type() {
		case unix.NFTA_RULE_HANDLE:
			r.handle = a.Uint64()
		case unix.NFTA_RULE_USERDATA:
			r.user = a.Bytes()
		case unix.NFTA_RULE_EXPRESSIONS:
			return eachAttribute(a.Bytes(), func(element *netlink.AttributeDecoder) error {
				var e kernelExpr
				err := eachAttribute(element.Bytes(), func(a *netlink.AttributeDecoder) error {
					switch a.Type() {
					case unix.NFTA_EXPR_NAME:
						e.name = a.String()
					case unix.NFTA_EXPR_DATA:
						e.data = a.Bytes()
					}
					return nil
				})
				r.exprs = append(r.exprs, e)
				return err
			})
		}
		return nil
	})
	return r, err
}

// eachAttribute calls f with a decoder that stands at each attribute of b. Those
// of nftables are big-endian.
func eachAttribute(b []byte, f func(*netlink.AttributeDecoder) error) error {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		if err := f(ad); err != nil {
			return err
		}
	}
	return ad.Err()
}

// packets is what the rule has counted, 0 without a counter.
func (r kernelRule) packets() (n uint64) {
	for _, e := range r.exprs {
		if e.name == "counter" {
			_ = eachAttribute(e.data, func(a *netlink.AttributeDecoder) error {
				if a.Type() == unix.NFTA_COUNTER_PACKETS {
					n = a.Uint64()
				}
				return nil
			})
		}
	}
	return n
}

// comment is nft's, or else that of the iptables match.
func (r kernelRule) comment() string {
	if s, ok := userComment(r.user); ok {
		return s
	}
	for _, e := range r.exprs {
		if e.name != "match" {
			continue
		}
		name, info := "", []byte(nil)
		_ = eachAttribute(e.data, func(a *netlink.AttributeDecoder) error {
			switch a.Type() {
			case unix.NFTA_MATCH_NAME:
				name = a.String()
			case unix.NFTA_MATCH_INFO:
				info = a.Bytes()
			}
			return nil
		})
		if name == "comment" {
			text, _, _ := strings.Cut(string(info), "\x00")
			return text
		}
	}
	return ""
}

// verdict is the one that the expression stands for, if it does.
func (e kernelExpr) verdict() (v expr.Verdict, ok bool) {
	if e.name != "immediate" {
		return v, false
	}
	err := eachAttribute(e.data, func(a *netlink.AttributeDecoder) error {
		if a.Type() != unix.NFTA_IMMEDIATE_DATA {
			return nil
		}
		return eachAttribute(a.Bytes(), func(a *netlink.AttributeDecoder) error {
			if a.Type() != unix.NFTA_DATA_VERDICT {
				return nil
			}
			ok = true
			return eachAttribute(a.Bytes(), func(a *netlink.AttributeDecoder) error {
				switch a.Type() {
				case unix.NFTA_VERDICT_CODE:
					v.Kind = expr.VerdictKind(int32(a.Uint32()))
				case unix.NFTA_VERDICT_CHAIN:
					v.Chain = a.String()
				}
				return nil
			})
		})
	})
	return v, ok && err == nil
}

// userComment is the comment in a rule's user data: a list of type, length and
// value, as libnftnl writes it (udata.h). Any program may write anything there, for
// which google/nftables v0.3.0 panics.
func userComment(b []byte) (string, bool) {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		value := b[2 : 2+int(b[1])]
		if userdata.Type(b[0]) == userdata.TypeComment {
			return strings.TrimRight(string(value), "\x00"), true
		}
		b = b[2+len(value):]
	}
	return "", false
}
