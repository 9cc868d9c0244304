package portmap

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// renew queues what makes the table one of the parts, with the elements, out of
// whatever it is. With keep, sets and base chains that fit stay where they are,
// and so do their elements: a packet that comes in the middle of the transaction
// finds them. In a new set of intervals it finds nothing until the kernel has
// sorted it, which is after the rules that look there have begun to count
// (nft_rbtree_commit, Linux 6.18).
func (c *nftConn) renew(parts []nftPart, es []nftElem, keep bool) error {
	chains, err := c.ListChainsOfTableFamily(c.table.Family)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	sets, err := c.GetSets(c.table)
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	wantSets, wantChains := map[string]nftSet{}, map[string]nftChain{}
	for _, p := range parts {
		for _, s := range p.sets {
			wantSets[s.name] = s
		}
		for _, ch := range p.chains {
			wantChains[ch.name] = ch
		}
	}
	clear(c.sets)
	kept := map[string]bool{}
	var old []nftElem
	for _, s := range sets {
		want, wanted := wantSets[s.Name]
		if !keep || !wanted || !want.fits(s) {
			continue
		}
		elems, ok, err := c.readElems(want)
		if err != nil {
			return err
		}
		if ok {
			kept[s.Name], c.sets[s.Name] = true, want
			old = append(old, elems...)
		}
	}
	es = slices.Clone(es)
	var add []nftElem
	for _, e := range es {
		if !kept[e.set] {
			add = append(add, e)
		}
	}
	es = slices.DeleteFunc(es, func(e nftElem) bool { return !kept[e.set] })
	gone, fresh := difference(old, es)

	c.FlushTable(c.table) // of its rules
	if err := c.delElems(gone); err != nil {
		return err
	}
	for _, s := range sets {
		if !kept[s.Name] {
			c.FlushSet(s)
			c.DelSet(s)
		}
	}
	for _, ch := range chains {
		if want, wanted := wantChains[ch.Name]; ch.Table.Name == Table && (!keep || !wanted || !want.fits(ch)) {
			c.DelChain(ch)
		}
	}
	for _, p := range parts {
		p.sets = slices.DeleteFunc(slices.Clone(p.sets), func(s nftSet) bool { return kept[s.name] })
		if err := c.add(p); err != nil {
			return err
		}
	}
	return c.addElems(append(add, fresh...))
}

// fits says whether the kernel's set is s. What google/nftables lists as the key
// of a verdict map is its value.
func (s nftSet) fits(got *nftables.Set) bool {
	if got.Interval != s.interval || got.IsMap != (s.val.Name != "") {
		return false
	}
	if s.val.Name == nftables.TypeVerdict.Name {
		return got.KeyType.GetNFTMagic() == nftables.TypeVerdict.GetNFTMagic()
	}
	return got.KeyType.GetNFTMagic() == s.key.GetNFTMagic() && got.DataType.GetNFTMagic() == s.val.GetNFTMagic()
}

// fits says whether the kernel's chain hangs where ch does. Whoever unhooks a
// chain or gives it another policy has the table to themselves.
func (ch nftChain) fits(got *nftables.Chain) bool {
	if ch.hook == nil || got.Hooknum == nil || got.Priority == nil {
		return ch.hook == nil && got.Hooknum == nil
	}
	return got.Type == ch.hook.typ && *got.Hooknum == *ch.hook.num && *got.Priority == ch.hook.priority &&
		got.Policy != nil && *got.Policy == nftables.ChainPolicyAccept
}

// readElems lists the elements of a set. It is not ok while the kernel moves
// them to a larger hash, when a listing may miss some: two have to be the same.
func (c *nftConn) readElems(s nftSet) (es []nftElem, ok bool, err error) {
	var last []nftElem
	for i := range 5 {
		raw, err := c.GetSetElements(s.set(c.table))
		if err != nil {
			return nil, false, fmt.Errorf("list set %s: %w", s.name, err)
		}
		es = elemsOf(s, sortElements(raw))
		if i > 0 && slices.Equal(es, last) {
			return es, true, nil
		}
		last = es
	}
	return nil, false, nil
}

// elemsOf is the reverse of raw; the elements are sorted.
func elemsOf(s nftSet, raw []nftables.SetElement) (es []nftElem) {
	for i, r := range raw {
		if r.IntervalEnd {
			continue
		}
		e := nftElem{set: s.name, key: string(r.Key), comment: r.Comment}
		if r.VerdictData != nil {
			e.chain = verdictChain(r.VerdictData)
		} else {
			e.val = string(r.Val)
		}
		if s.interval && i+1 < len(raw) && raw[i+1].IntervalEnd && !bytes.Equal(raw[i+1].Key, r.Key) {
			e.end = string(raw[i+1].Key)
		}
		es = append(es, e)
	}
	return es
}

// verdictChain is where a verdict jumps to. Another verdict is none of ours, and
// like no element of ours.
func verdictChain(v *expr.Verdict) string {
	if v.Kind != expr.VerdictJump {
		return "\x00"
	}
	return v.Chain
}
