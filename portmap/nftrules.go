package portmap

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftRuleCounter is what a rule in the kernel has counted; a rule without a
// counter has zero.
type nftRuleCounter struct{ packets uint64 }

// ruleCounters are those of the rules of a chain, in order. A chain that is not
// there has none. google/nftables v0.3.0 cannot read a rule with a direction
// (ct original …), which is one byte and not four.
func (c *nftConn) ruleCounters(chain string) (rules []nftRuleCounter, err error) {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(c.table.Name + "\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte(chain + "\x00")},
	})
	if err != nil {
		return nil, err
	}
	reply, err := c.raw.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE), Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(c.table.Family), unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list rules of chain %s: %w", chain, err)
	}
	for _, msg := range reply {
		r, err := parseRuleCounter(msg.Data[4:])
		if err != nil {
			return nil, fmt.Errorf("list rules of chain %s: %w", chain, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// parseRuleCounter looks for a counter among the expressions of a rule.
func parseRuleCounter(b []byte) (r nftRuleCounter, err error) {
	rule, err := nftAttributes(b)
	if err != nil {
		return r, err
	}
	for rule.Next() {
		if rule.Type() == unix.NFTA_RULE_EXPRESSIONS {
			rule.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(e *netlink.AttributeDecoder) error { return r.expression(e) })
				}
				return nil
			})
		}
	}
	return r, rule.Err()
}

func (r *nftRuleCounter) expression(e *netlink.AttributeDecoder) error {
	name := ""
	for e.Next() {
		switch e.Type() {
		case unix.NFTA_EXPR_NAME:
			name = e.String()
		case unix.NFTA_EXPR_DATA:
			if name != "counter" {
				continue
			}
			e.Nested(func(data *netlink.AttributeDecoder) error {
				data.ByteOrder = binary.BigEndian
				for data.Next() {
					if data.Type() == unix.NFTA_COUNTER_PACKETS {
						r.packets = data.Uint64()
					}
				}
				return nil
			})
		}
	}
	return nil
}

func nftAttributes(b []byte) (*netlink.AttributeDecoder, error) {
	ad, err := netlink.NewAttributeDecoder(b)
	if err == nil {
		ad.ByteOrder = binary.BigEndian
	}
	return ad, err
}
