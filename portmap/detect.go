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

// OpenMapper opens the mapper of that name. Auto takes nftables where the kernel
// has it and Docker's rules can be seen with it, else iptables; reason says
// which and why, for the log and for reports.
func OpenMapper(name string, log *slog.Logger) (m Mapper, chosen, reason string, err error) {
	switch name {
	case MapperNFTables:
		m, err = NewNFTables(log)
		return m, name, "asked for", err
	case MapperIPTables:
		m, err = NewIPTables(IPTablesConfig{Log: log})
		return m, name, "asked for", err
	case MapperAuto, "":
		return detectMapper(log)
	}
	return nil, "", "", fmt.Errorf("unknown mapper %q; known are %s, %s, %s", name, MapperAuto, MapperNFTables, MapperIPTables)
}

func detectMapper(log *slog.Logger) (Mapper, string, string, error) {
	nft, nftErr := NewNFTables(log)
	if nftErr == nil && !legacyDocker() {
		return nft, MapperNFTables, "the kernel has nftables", nil
	}
	cfg := IPTablesConfig{Log: log}
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
		orDiscard(log).Warn("Docker's chains are iptables-legacy's, and iptables cannot be used: where its FORWARD policy is DROP, ports reach containers from this host alone", "err", iptErr)
		return nft, MapperNFTables, "iptables cannot be used: " + iptErr.Error(), nil
	}
	return nil, "", "", fmt.Errorf("choose a mapper: %w", errors.Join(nftErr, iptErr))
}
