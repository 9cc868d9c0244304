package portmap

import (
	"errors"
	"fmt"
	"log/slog"
)

// The names of the mappers, as the setting --mapper has them.
const (
	MapperAuto     = "auto"
	MapperNFTables = "nftables"
	MapperIPTables = "iptables"
)

// MapperConfig is for OpenMapper. Every field may be zero.
type MapperConfig struct {
	Log    *slog.Logger // nil is silent
	Settle func()       // as IPTablesConfig has it
}

// OpenMapper opens the mapper of that name. Auto takes nftables where the kernel
// has it and Docker's rules can be seen with it, else iptables; reason says
// which and why, for the log and for reports.
func OpenMapper(name string, cfg MapperConfig) (m Mapper, chosen, reason string, err error) {
	switch name {
	case MapperNFTables:
		m, err = NewNFTables(cfg.Log)
		return m, name, "asked for", err
	case MapperIPTables:
		m, err = NewIPTables(cfg.iptables())
		return m, name, "asked for", err
	case MapperAuto, "":
		return detectMapper(cfg)
	}
	return nil, "", "", fmt.Errorf("unknown mapper %q; known are %s, %s, %s", name, MapperAuto, MapperNFTables, MapperIPTables)
}

func (c MapperConfig) iptables() IPTablesConfig {
	return IPTablesConfig{Log: c.Log, Settle: c.Settle}
}

func detectMapper(c MapperConfig) (Mapper, string, string, error) {
	nft, nftErr := NewNFTables(c.Log)
	if nftErr == nil && !legacyDocker() {
		return nft, MapperNFTables, "the kernel has nftables", nil
	}
	cfg := c.iptables()
	if nftErr == nil {
		cfg.IPv4, cfg.IPv6 = legacyIPTables.IPv4, legacyIPTables.IPv6
	}
	ipt, iptErr := NewIPTables(cfg)
	switch {
	case iptErr == nil && nftErr == nil:
		return ipt, MapperIPTables, "Docker's chains are iptables-legacy's, which nftables cannot reach", nft.Close()
	case iptErr == nil:
		return ipt, MapperIPTables, "nftables cannot be used: " + nftErr.Error(), nil
	case nftErr == nil:
		orDiscard(c.Log).Warn("Docker's chains are iptables-legacy's, and iptables cannot be used: where its FORWARD policy is DROP, ports reach containers from this host alone", "err", iptErr)
		return nft, MapperNFTables, "iptables cannot be used: " + iptErr.Error(), nil
	}
	return nil, "", "", fmt.Errorf("choose a mapper: %w", errors.Join(nftErr, iptErr))
}
