package portmap

import (
	"errors"
	"log/slog"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// RemoveOther removes what the mapper that kept does not name has left on this
// host, for after kept's rules stand: so a switch closes nothing and opens
// nothing. Where there is nothing, it runs no program.
func RemoveOther(kept string, log *slog.Logger) error {
	log = orDiscard(log)
	if kept == MapperIPTables {
		return removeNFTables(log)
	}
	found, err := hasIPTablesChains()
	if found {
		err = errors.Join(err, CleanupIPTables(IPTablesConfig{Log: log}))
	}
	if legacyTables() {
		cfg := legacyIPTables
		cfg.Log = log
		err = errors.Join(err, CleanupIPTables(cfg))
	}
	return err
}

// removeNFTables leaves the table of family bridge, which either mapper has.
func removeNFTables(log *slog.Logger) error {
	m, err := NewNFTables(log)
	if err != nil {
		return nil // a kernel without it has nothing of it
	}
	removed, err := m.conn.removeTable()
	if removed {
		log.Info("remove nftables table of the other mapper", "name", "inet "+Table)
	}
	_, userErr := m.docker.ensure(false)
	return errors.Join(err, userErr, m.Close())
}

// hasIPTablesChains says whether iptables of the nft variant has chains of ours.
// The programs themselves would make the tables that they list.
func hasIPTablesChains() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, err
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		chains, err := conn.ListChainsOfTableFamily(family)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return strings.HasPrefix(c.Name, iptPrefix) }) {
			return true, nil
		}
	}
	return false, nil
}
