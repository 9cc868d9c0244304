package portmap

import (
	"errors"
	"log/slog"
)

// Cleanup removes every rule of ours, of both mappers, without a daemon, and
// logs what it removes. The table of a running daemon belongs to it and is an
// error.
func Cleanup(log *slog.Logger) error {
	log = orDiscard(log)
	err := errors.Join(cleanupNFTables(log), CleanupIPTables(IPTablesConfig{Log: log}))
	if legacyTables() {
		cfg := legacyIPTables
		cfg.Log = log
		err = errors.Join(err, CleanupIPTables(cfg))
	}
	return err
}

func cleanupNFTables(log *slog.Logger) error {
	m, err := NewNFTables(log)
	if err != nil {
		return err
	}
	stands, err := m.conn.tableStands()
	if err != nil {
		return errors.Join(err, m.Close())
	}
	ports, err := m.ports.ensure(false)
	if ports {
		log.Info("remove nftables table", "name", "bridge "+Table)
	}
	if err != nil {
		return errors.Join(err, m.Close())
	}
	// The mirror is empty: what Load leaves is nothing.
	if err := m.Load(nil, nil); err != nil {
		return errors.Join(err, m.Close())
	}
	if stands {
		log.Info("remove nftables table", "name", "inet "+Table)
	}
	return m.Close()
}
