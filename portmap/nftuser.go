package portmap

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// UserTable is the nftables table, of family inet, for the administrator's own
// filter rules: a chain of our table would be the kernel's to keep from them.
const UserTable = "portolan-user"

// userForward is its base chain. It comes before our forward chain, whose accept
// sets the mark that passes Docker's policy; a drop is final wherever it comes.
const userForward = "forward"

// userTable makes what is missing of UserTable while there is a network, and
// removes it, when it is not wanted any more, if it is empty. Whatever else is
// in there is left alone.
type userTable struct {
	conn *nftables.Conn
	log  *slog.Logger
}

func (u userTable) table() *nftables.Table {
	return &nftables.Table{Name: UserTable, Family: nftables.TableFamilyINet}
}

// planUser is the table as it is made.
func planUser() nftPart {
	return nftPart{chains: []nftChain{{name: userForward,
		hook: hook(nftables.ChainTypeFilter, nftables.ChainHookForward, -2, "forward priority filter - 2")}}}
}

func (u userTable) ensure(wanted bool) error {
	tables, err := u.conn.ListTables()
	if err != nil {
		return fmt.Errorf("list nftables tables: %w", err)
	}
	stands := slices.ContainsFunc(tables, func(t *nftables.Table) bool {
		return t.Name == UserTable && t.Family == nftables.TableFamilyINet
	})
	if !wanted {
		if !stands {
			return nil
		}
		return u.removeEmpty()
	}
	if stands {
		chains, err := u.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
		if err != nil {
			return fmt.Errorf("list chains: %w", err)
		}
		if slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name == UserTable && c.Name == userForward }) {
			return nil
		}
	} else {
		u.conn.AddTable(u.table())
	}
	c := nftConn{table: u.table()}
	for _, ch := range planUser().chains {
		u.conn.AddChain(c.chain(ch))
	}
	if err := u.conn.Flush(); err != nil {
		return fmt.Errorf("make nftables table %s: %w", UserTable, err)
	}
	return nil
}

// nonRecursive has the kernel refuse to delete what is not empty (NLM_F_NONREC).
const nonRecursive = netlink.HeaderFlags(0x100)

// removeEmpty deletes chain and table, of which the kernel says whether they are
// empty: nobody's rule goes. It uses a socket of its own, since the answers to a
// batch that fails are several.
func (u userTable) removeEmpty() error {
	raw, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer raw.Close()
	chain, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_CHAIN_TABLE, Data: []byte(UserTable + "\x00")},
		{Type: unix.NFTA_CHAIN_NAME, Data: []byte(userForward + "\x00")},
	})
	if err != nil {
		return err
	}
	table, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: []byte(UserTable + "\x00")}})
	if err != nil {
		return err
	}
	const inet = byte(nftables.TableFamilyINet)
	_, err = raw.SendMessages([]netlink.Message{
		nftMessage(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
		nftMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELCHAIN, nonRecursive, inet, 0, chain),
		nftMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, nonRecursive|netlink.Acknowledge, inet, 0, table),
		nftMessage(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
	})
	if err == nil {
		_, err = raw.Receive()
	}
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPERM):
		u.log.Info("nftables table "+UserTable+" stays: there is more in it than Portolan made", "err", err)
		return nil
	case err != nil:
		return fmt.Errorf("delete nftables table %s: %w", UserTable, err)
	}
	u.log.Info("remove nftables table", "name", "inet "+UserTable)
	return nil
}

// nftMessage is a message of a batch.
func nftMessage(typ int, flags netlink.HeaderFlags, family, resID byte, attrs []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request | flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, resID}, attrs...),
	}
}
