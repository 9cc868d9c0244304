package main

import (
	"log/slog"
	"runtime/debug"

	"github.com/portolan/portolan/internal/sklookup"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// The values of --ranges.
const (
	rangesAuto    = "auto"
	rangesSockets = "sockets"
)

// openedRanges is what holds long ranges of host ports, if anything does but
// sockets, and why.
type openedRanges struct {
	*sklookup.Table // nil: a socket for each port
	reason          string
}

// openRanges attaches the programs where they are wanted and this host has what
// they need. What an earlier process left in net.ipv4.ip_local_reserved_ports goes
// first.
func openRanges(wanted, sysctlDir string, st *store.Store, log *slog.Logger) (openedRanges, error) {
	for _, c := range st.Sysctls() {
		if c.Path != sklookup.ReservedPorts {
			continue
		}
		if err := sklookup.Unreserve(sysctlDir, c.New); err != nil {
			return openedRanges{}, err
		}
		if err := st.DeleteSysctl(c.Path); err != nil {
			return openedRanges{}, err
		}
	}
	if wanted == rangesSockets {
		return openedRanges{reason: "--ranges sockets"}, nil
	}
	table, err := sklookup.Open(sklookup.Config{SysctlDir: sysctlDir, Log: log, Record: func(added string) error {
		if added == "" {
			return st.DeleteSysctl(sklookup.ReservedPorts)
		}
		return st.PutSysctl(store.Sysctl{Path: sklookup.ReservedPorts, New: added})
	}})
	if err != nil {
		return openedRanges{reason: oneLine(err)}, nil
	}
	debug.FreeOSMemory() // see openHooks
	return openedRanges{table, "attached to cgroup " + table.Cgroup()}, nil
}

// forPublisher is a nil interface where there is none.
func (r openedRanges) forPublisher() portmap.Ranges {
	if r.Table == nil {
		return nil
	}
	return r.Table
}

func (r openedRanges) state() string {
	if r.Table == nil {
		return "sockets"
	}
	return "sk_lookup"
}

func (r openedRanges) Close() error {
	if r.Table == nil {
		return nil
	}
	return r.Table.Close()
}
