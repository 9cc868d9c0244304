package portmap

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/fault"
)

// PortGroup is the interface group (ip link set … group) of the bridge ports of
// networks whose containers may not talk to one another (Network.NoICC). No
// other interface may have it. In ASCII it is "port".
const PortGroup = 0x706f7274

// PortsApart says whether the kernel keeps bridge ports of PortGroup apart by
// rules: whether the table that a Mapper sets while it has a network with NoICC
// stands. Where it does not, because the kernel has no nftables of family
// bridge, the ports have to be isolated (IFLA_BRPORT_ISOLATED). That closes them
// as well, but with br_netfilter it also closes the way to published ports.
//
// It asks the kernel and not a Mapper: what counts when a port is opened is what
// stands, and after a restart that is so before the Mapper has loaded.
func PortsApart() bool {
	c, err := openNFT(nftables.TableFamilyBridge)
	if err != nil {
		return false
	}
	whole, err := c.hasChains(planBridge().chains)
	return errors.Join(err, c.CloseLasting()) == nil && whole
}

// planBridge is our table of family bridge: what a port of PortGroup sends to
// another one (or, in hairpin mode, to itself) is dropped, whatever it is. A
// frame for the host is not forwarded and does not come here.
//
// The exception is a packet to a published port. With br_netfilter it is
// translated before it is routed, and from then on bridged from container to
// container. br_netfilter, which has priority 0 in this hook, shows it to our
// forward chain of the IP families; that one accepts what was translated, and
// marks it. The mark says nothing but that, as it is cleared before.
func planBridge() nftPart {
	forward := func(priority nftables.ChainPriority) *nftHook {
		return hook(nftables.ChainTypeFilter, nftables.ChainHookForward, priority, fmt.Sprintf("forward priority %d", priority))
	}
	return nftPart{chains: []nftChain{
		{"before-br-netfilter", forward(-200), []nftRule{
			{stmtIIFGroup(PortGroup), stmtOIFGroup(PortGroup), stmtClearMark(MarkBit)},
		}},
		{"after-br-netfilter", forward(1), []nftRule{
			{stmtIIFGroup(PortGroup), stmtOIFGroup(PortGroup), stmtNotMarked(MarkBit), stmtDrop},
		}},
	}}
}

// bridgeTable keeps the table of planBridge, for either Mapper, whose lock
// guards it. It stands while there is a network with NoICC, so that nobody else
// pays for a hook that sees the frames of every bridge.
type bridgeTable struct {
	log    *slog.Logger
	family nftables.TableFamily
	conn   *nftConn // nil before the first look
	ours   bool     // set by this process
	absent bool     // the log says that the kernel has no such tables
}

func newBridgeTable(log *slog.Logger) *bridgeTable {
	return &bridgeTable{log: log, family: nftables.TableFamilyBridge}
}

// ensure makes the table whole, or takes it away, and says whether it had to. A
// kernel that has no such tables is not an error: PortsApart is false there.
func (b *bridgeTable) ensure(wanted bool) (changed bool, err error) {
	if b.conn == nil {
		if b.conn, err = openNFT(b.family); err != nil {
			b.without(wanted, err)
			return false, nil
		}
	}
	stands, err := b.conn.tableStands()
	switch {
	case err != nil && b.ours:
		return false, err
	case err != nil:
		b.without(wanted, err)
		return false, nil
	case !wanted:
		b.ours = false
		return b.conn.removeTable()
	case stands && b.ours:
		if whole, err := b.conn.hasChains(planBridge().chains); err != nil || whole {
			return false, err
		}
		fallthrough
	case b.ours:
		b.log.Debug("nftables rules were changed by somebody else; setting them again", "table", "bridge "+Table)
	}
	if _, err := b.conn.own(); errors.Is(err, unix.EOPNOTSUPP) {
		b.without(wanted, err)
		return false, nil
	} else if err != nil {
		return false, err
	}
	err = b.conn.clear()
	if err == nil {
		err = b.conn.add(planBridge())
	}
	if err == nil {
		err = b.conn.Flush()
	}
	if err != nil {
		return false, fmt.Errorf("set nftables table bridge %s: %w", Table, err)
	}
	b.ours = true
	fault.Point("nft-bridge set")
	return true, nil
}

// without says once that the kernel lacks something that is wanted.
func (b *bridgeTable) without(wanted bool, err error) {
	if wanted && !b.absent {
		b.absent = true
		b.log.Warn("no nftables of family bridge: ports of networks without inter-container communication are isolated, and with br_netfilter do not reach published ports", "err", err)
	}
}

func (b *bridgeTable) close() error {
	if b.conn == nil {
		return nil
	}
	return b.conn.CloseLasting()
}

// closesPorts says whether any network wants the table.
func (m *mirror) closesPorts() bool {
	for _, n := range m.nets {
		if n.NoICC {
			return true
		}
	}
	return false
}
