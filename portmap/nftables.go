package portmap

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/fault"
)

// NFTables is the Mapper on nftables, over netlink, without the nft program.
//
// Every call is one transaction, and a packet's look-up costs the same with one
// and with 65,535 published ports: ports are elements of maps. All of it is in the table inet
// portolan, which the kernel keeps from everybody else where it can (Linux 6.9).
// Outside are the one rule of dockerUser, and the tables of userTable and
// bridgeTable.
type NFTables struct {
	log    *slog.Logger
	docker *dockerUser
	user   userTable
	ports  *bridgeTable

	mu    sync.Mutex // guards below
	conn  *nftConn
	owned bool
	base  bool   // the table and planBase stand
	stale bool   // the kernel has something that the mirror has not
	gen   uint32 // the generation that was looked at last; 0 is none

	nftMirror
	guard4, guard6 bool
	uplinks        []string
	uplinksRead    time.Time
}

// nftMirror is what the kernel has of ours.
type nftMirror struct {
	mirror
	hosts map[netip.Addr]int // mappings that name a host address
}

func newNFTMirror() nftMirror { return nftMirror{newMirror(), map[netip.Addr]int{}} }

var _ Mapper = (*NFTables)(nil)

// NewNFTables opens the netlink socket. Nothing in the kernel changes before
// Load or AddNetwork. A nil logger is silent.
func NewNFTables(log *slog.Logger) (*NFTables, error) {
	conn, err := openNFT(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	if _, err := conn.ListTables(); err != nil {
		_ = conn.CloseLasting()
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	return &NFTables{
		log: orDiscard(log), docker: newDockerUser(conn, orDiscard(log)), user: userTable{conn.Conn, orDiscard(log)}, ports: newBridgeTable(orDiscard(log)),
		conn: conn, nftMirror: newNFTMirror(),
	}, nil
}

func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}

// Load implements Mapper in one transaction.
func (m *NFTables) Load(nets []Network, pubs []Publication) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.nftMirror
	m.nftMirror = newNFTMirror()
	for _, n := range nets {
		m.nets[n.ID] = n
	}
	for _, p := range pubs {
		if err := m.publish(p); err != nil {
			m.nftMirror = old
			return err
		}
	}
	if err := m.rebuildLocked(); err != nil {
		m.nftMirror = old
		return fmt.Errorf("load nftables rules: %w", err)
	}
	return m.settleLocked()
}

// rebuildLocked makes the kernel what the mirror says, from nothing. After an
// error the table is as it was.
func (m *NFTables) rebuildLocked() (err error) {
	if len(m.nets) == 0 {
		return m.removeTableLocked()
	}
	m.owned, err = m.conn.own()
	if err != nil {
		return err
	}
	sets := maps.Clone(m.conn.sets)
	if uplinks, err := uplinkBridges(); err != nil {
		m.log.Warn("look for bridges that lead to a LAN; those known stay", "err", err)
	} else {
		m.uplinks, m.uplinksRead = uplinks, time.Now()
	}
	parts := []nftPart{planBase()}
	for _, n := range m.nets {
		parts = append(parts, planNetwork(n))
	}
	for a := range m.hosts {
		parts = append(parts, planHost(a))
	}
	for _, p := range m.pubs {
		if p.limits() {
			parts = append(parts, planLimit(p))
		}
	}
	es := slices.Collect(m.allElements())
	renew := func(keep bool) error {
		if err := m.conn.renew(parts, es, keep); err != nil {
			return err
		}
		m.conn.addRules("guard", planGuard(m.guard4, m.guard6))
		for _, name := range [...]string{"port-forward", "port-local"} {
			m.conn.addRules(name, planLimited(m.anyLimits()))
		}
		return m.conn.Flush()
	}
	if err = renew(true); err != nil {
		m.log.Debug("nftables table does not fit, and is made anew", "err", err)
		err = renew(false)
	}
	if err != nil {
		m.conn.sets = sets
		return err
	}
	fault.Point("nft rebuilt")
	m.base, m.stale = true, false
	return nil
}

// anewLocked follows a change that the kernel has refused: whoever has flushed the
// rules has taken along what was to be changed. It makes them anew out of the
// mirror, as Check would, or says what was refused.
func (m *NFTables) anewLocked(refused error) error {
	if m.rebuildLocked() != nil {
		return refused
	}
	m.gen = 0
	return nil
}

// settleLocked follows every change of the networks: what is outside of the
// table has to fit. Its error leaves the table as it is meant to be; Check tries
// the rest again.
func (m *NFTables) settleLocked() error {
	m.gen = 0
	_, err := m.outsideLocked()
	return err
}

// outsideLocked keeps the rule in DOCKER-USER and the table of family bridge, and
// says whether it had to change them. The administrator's table is kept, too, and
// may have been removed by them: that is no repair.
func (m *NFTables) outsideLocked() (changed bool, err error) {
	docker, dockerErr := m.docker.ensure(len(m.nets) > 0)
	userErr := m.user.ensure(len(m.nets) > 0)
	ports, portsErr := m.ports.ensure(m.closesPorts())
	return docker || ports, errors.Join(dockerErr, userErr, portsErr)
}

func (m *NFTables) removeTableLocked() error {
	if _, err := m.conn.removeTable(); err != nil {
		return err
	}
	m.base, m.stale = false, false
	clear(m.conn.sets)
	return nil
}

// AddNetwork implements Mapper.
func (m *NFTables) AddNetwork(n Network) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, known := m.nets[n.ID]
	m.nets[n.ID] = n
	err := func() error {
		if !m.base {
			return m.rebuildLocked()
		}
		if known {
			if err := m.conn.delElems(networkElements(old)); err != nil {
				return err
			}
			m.conn.remove(planNetwork(old))
		}
		if err := m.conn.add(planNetwork(n)); err != nil {
			return err
		}
		if err := m.conn.addElems(networkElements(n)); err != nil {
			return err
		}
		return m.conn.Flush()
	}()
	if err != nil && m.base {
		err = m.anewLocked(err)
	}
	if err != nil {
		if delete(m.nets, n.ID); known {
			m.nets[n.ID] = old
		}
		return fmt.Errorf("add network %.12s to nftables: %w", n.ID, err)
	}
	fault.Point("nft network added")
	return errors.Join(m.refreshUplinksLocked(), m.settleLocked())
}

// RemoveNetwork implements Mapper.
func (m *NFTables) RemoveNetwork(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, known := m.nets[id]
	if !known {
		return nil
	}
	for ep, p := range m.pubs {
		if p.Network == id {
			if err := m.replaceLocked(Publication{Target: Target{Endpoint: ep}}); err != nil {
				return err
			}
		}
	}
	if len(m.nets) == 1 {
		delete(m.nets, id)
		if err := m.removeTableLocked(); err != nil {
			m.nets[id] = n
			return err
		}
		return m.settleLocked()
	}
	if err := m.conn.delElems(networkElements(n)); err != nil {
		return err
	}
	m.conn.remove(planNetwork(n))
	delete(m.nets, id)
	err := m.conn.Flush()
	if err != nil {
		err = m.anewLocked(err)
	}
	if err != nil {
		m.nets[id] = n
		return fmt.Errorf("remove network %.12s from nftables: %w", id, err)
	}
	fault.Point("nft network removed")
	return m.settleLocked()
}

// Map implements Mapper.
func (m *NFTables) Map(p Publication) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.nets[p.Network]; !known {
		return fmt.Errorf("map ports of endpoint %.12s: no such network: %.12s", p.Endpoint, p.Network)
	}
	return m.replaceLocked(p)
}

// Unmap implements Mapper.
func (m *NFTables) Unmap(endpoint string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.replaceLocked(Publication{Target: Target{Endpoint: endpoint}})
	if err != nil {
		m.leave(endpoint)
		m.stale = true
	}
	return err
}

// Guard implements Mapper.
func (m *NFTables) Guard(ipv4, ipv6 bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.base && (m.guard4 != ipv4 || m.guard6 != ipv6) {
		before := m.generation()
		m.conn.FlushChain(&nftables.Chain{Name: "guard", Table: m.conn.table})
		m.conn.addRules("guard", planGuard(ipv4, ipv6))
		if err := m.conn.Flush(); err != nil {
			return fmt.Errorf("set nftables forward guard: %w", err)
		}
		fault.Point("nft guard set")
		m.transactedLocked(before)
	}
	m.guard4, m.guard6 = ipv4, ipv6
	return nil
}

// Guarded implements Mapper.
func (m *NFTables) Guarded() (ipv4, ipv6 bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rules, err := m.conn.GetRules(m.conn.table, &nftables.Chain{Name: "guard", Table: m.conn.table})
	if errors.Is(err, unix.ENOENT) {
		return false, false, nil
	}
	for _, r := range rules {
		ipv4 = ipv4 || isOfFamily(r, true)
		ipv6 = ipv6 || isOfFamily(r, false)
	}
	return ipv4, ipv6, err
}

// Kept says whether the kernel keeps the rules from everybody else, so that
// nobody needs to hurry to look at them.
func (m *NFTables) Kept() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.owned || len(m.nets) == 0
}

// Close implements Mapper.
func (m *NFTables) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return errors.Join(m.ports.close(), m.conn.CloseLasting())
}
