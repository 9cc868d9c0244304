package portmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/fault"
)

// Table flags that x/sys does not have. A table with an owner can be changed by
// nobody else, not even by `nft flush ruleset`; one that persists outlives its
// owner (Linux 6.9). Never the first without the second: the rules would go
// with the process.
const (
	tableOwner   = 1 << 1 // NFT_TABLE_F_OWNER
	tablePersist = 1 << 2 // NFT_TABLE_F_PERSIST
)

const (
	// elemChunk keeps a list of elements below the 64 KiB of a netlink
	// attribute; an interval is two, each with its comment.
	elemChunk = 400
	// sockBuffer holds the largest batch, which is one sendmsg, and its
	// acknowledgements.
	sockBuffer = 64 << 20
)

// nftConn is one netlink socket for as long as the program runs: a table's owner
// is a socket. Each of our tables has one.
type nftConn struct {
	*nftables.Conn
	raw   *netlink.Conn
	table *nftables.Table
	// sets knows every set of the table, to make elements for it.
	sets map[string]nftSet
}

func openNFT(family nftables.TableFamily) (*nftConn, error) {
	c := &nftConn{
		table: &nftables.Table{Name: Table, Family: family},
		sets:  map[string]nftSet{},
	}
	keep := func(raw *netlink.Conn) error {
		c.raw = raw
		sc, err := raw.SyscallConn()
		if err != nil {
			return err
		}
		return sc.Control(func(fd uintptr) {
			// Without CAP_NET_ADMIN the first change fails and says so.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sockBuffer)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sockBuffer)
		})
	}
	var err error
	c.Conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(keep))
	if err != nil {
		return nil, fmt.Errorf("open nftables netlink socket: %w", err)
	}
	return c, nil
}

// Flush sends what is queued, as one transaction. After a refusal it reads what
// google/nftables v0.3.0 leaves unread of the kernel's answers, which would be
// taken for those to the next one: each message of a batch may be refused.
func (c *nftConn) Flush() error {
	err := c.Conn.Flush()
	if err == nil {
		return nil
	}
	sc, e := c.raw.SyscallConn()
	if e != nil {
		return errors.Join(err, e)
	}
	// All answers are there when sendmsg(2) returns.
	return errors.Join(err, sc.Control(func(fd uintptr) {
		buf := make([]byte, 1<<16)
		for {
			if _, _, e := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT); e != nil && e != unix.EINTR {
				return
			}
		}
	}))
}

// tableStands says whether our table is there, whoever made it.
func (c *nftConn) tableStands() (bool, error) {
	tables, err := c.ListTables()
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool {
		return t.Name == Table && t.Family == c.table.Family
	}), nil
}

// removeTable deletes the table, if it is there.
func (c *nftConn) removeTable() (removed bool, err error) {
	stands, err := c.tableStands()
	if err != nil || !stands {
		return false, err
	}
	// An orphan has to be taken over before it can be deleted.
	if _, err := c.own(); err != nil {
		return false, err
	}
	c.DelTable(c.table)
	if err := c.Flush(); err != nil {
		return false, fmt.Errorf("delete nftables table %s: %w", Table, err)
	}
	fault.Point("nft table removed")
	return true, nil
}

// own creates the table or takes over one whose owner has gone. Kernels that
// know no owner, or none that persists, get a plain table.
func (c *nftConn) own() (owned bool, err error) {
	err = c.newTable(tableOwner | tablePersist)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		if plain := c.newTable(0); plain == nil {
			return false, nil
		}
	}
	if errors.Is(err, unix.EPERM) {
		return false, fmt.Errorf("create nftables table %s (is another process its owner, or CAP_NET_ADMIN missing?): %w", Table, err)
	}
	if err != nil {
		return false, fmt.Errorf("create nftables table %s: %w", Table, err)
	}
	fault.Point("nft table owned")
	return true, nil
}

// newTable sends what google/nftables v0.3.0 cannot: a table with flags.
func (c *nftConn) newTable(flags uint32) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(Table + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binaryutil.BigEndian.PutUint32(flags)},
	})
	if err != nil {
		return err
	}
	_, err = c.raw.SendMessages([]netlink.Message{
		nftMessage(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
		nftMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Acknowledge, byte(c.table.Family), 0, attrs),
		nftMessage(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
	})
	if err != nil {
		return err
	}
	_, err = c.raw.Receive()
	return err
}

// generation is the kernel's count of changes to any ruleset of this network
// namespace; google/nftables does not ask for it.
func (c *nftConn) generation() (uint32, error) {
	reply, err := c.raw.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, fmt.Errorf("get nftables generation: %w", err)
	}
	for _, msg := range reply {
		ad, err := netlink.NewAttributeDecoder(msg.Data[4:])
		if err != nil {
			return 0, err
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("get nftables generation: no number in the reply")
}

// clear queues the removal of everything in the table but the table itself,
// whose owner stays: rules first, then elements, which refer to chains too.
func (c *nftConn) clear() error {
	chains, err := c.ListChainsOfTableFamily(c.table.Family)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	sets, err := c.GetSets(c.table)
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	c.FlushTable(c.table)
	for _, s := range sets {
		c.FlushSet(s)
		c.DelSet(s)
	}
	for _, ch := range chains {
		if ch.Table.Name == Table {
			c.DelChain(ch)
		}
	}
	clear(c.sets)
	return nil
}

// add queues a part: its sets, all its chains, then their rules, which may jump
// to any of the chains.
func (c *nftConn) add(p nftPart) error {
	for _, s := range p.sets {
		if err := c.AddSet(s.set(c.table), nil); err != nil {
			return fmt.Errorf("add set %s: %w", s.name, err)
		}
		c.sets[s.name] = s
	}
	for _, ch := range p.chains {
		c.AddChain(c.chain(ch))
	}
	for _, ch := range p.chains {
		c.addRules(ch.name, ch.rules)
	}
	return nil
}

func (c *nftConn) chain(ch nftChain) *nftables.Chain {
	out := &nftables.Chain{Name: ch.name, Table: c.table}
	if h := ch.hook; h != nil {
		accept := nftables.ChainPolicyAccept
		out.Type, out.Hooknum, out.Priority, out.Policy = h.typ, h.num, &h.priority, &accept
	}
	return out
}

func (c *nftConn) addRules(chain string, rules []nftRule) {
	ch := &nftables.Chain{Name: chain, Table: c.table}
	for _, r := range rules {
		c.AddRule(&nftables.Rule{Table: c.table, Chain: ch, Exprs: r.exprs()})
	}
}

// remove queues the removal of a part to which no element leads any more.
func (c *nftConn) remove(p nftPart) {
	for _, ch := range p.chains {
		c.FlushChain(&nftables.Chain{Name: ch.name, Table: c.table})
	}
	for _, ch := range p.chains {
		c.DelChain(&nftables.Chain{Name: ch.name, Table: c.table})
	}
	for _, s := range p.sets {
		c.DelSet(s.set(c.table))
		delete(c.sets, s.name)
	}
}

func (c *nftConn) addElems(es []nftElem) error { return c.elems(es, c.SetAddElements) }

func (c *nftConn) delElems(es []nftElem) error { return c.elems(es, c.SetDeleteElements) }

// elems queues elements set by set, in chunks.
func (c *nftConn) elems(es []nftElem, queue func(*nftables.Set, []nftables.SetElement) error) error {
	bySet := map[string][]nftables.SetElement{}
	for _, e := range es {
		bySet[e.set] = append(bySet[e.set], e.raw(c.sets[e.set].interval)...)
	}
	for name, raw := range bySet {
		set := c.sets[name].set(c.table)
		for chunk := range slices.Chunk(raw, elemChunk) {
			if err := queue(set, chunk); err != nil {
				return fmt.Errorf("elements of set %s: %w", name, err)
			}
		}
	}
	return nil
}
