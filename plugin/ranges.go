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
// they need. Where it is not so, what an earlier process held and left in
// net.ipv4.ip_local_reserved_ports goes. keep is nil where nobody keeps anything over
// a restart.
func openRanges(wanted, sysctlDir string, st *store.Store, keep sklookup.Keeper, log *slog.Logger) (openedRanges, error) {
	if wanted == rangesSockets {
		return openedRanges{reason: "--ranges sockets"}, unreserve(sysctlDir, st, keep, log)
	}
	table, err := sklookup.Open(sklookup.Config{
		SysctlDir: sysctlDir,
		Recorded:  recordedReserved(st),
		Record: func(added string) error {
			if added == "" {
				return st.DeleteSysctl(sklookup.ReservedPorts)
			}
			return st.PutSysctl(store.Sysctl{Path: sklookup.ReservedPorts, New: added})
		},
		Keep: keep,
		Log:  log,
	})
	if err != nil {
		return openedRanges{reason: oneLine(err)}, unreserve(sysctlDir, st, keep, log)
	}
	debug.FreeOSMemory() // see openHooks
	return openedRanges{table, "attached to cgroup " + table.Cgroup()}, nil
}

// unreserve ends what an earlier process held.
func unreserve(sysctlDir string, st *store.Store, keep sklookup.Keeper, log *slog.Logger) error {
	if keep != nil {
		sklookup.Forget(keep, log)
	}
	added := recordedReserved(st)
	if added == "" {
		return nil
	}
	if err := sklookup.Unreserve(sysctlDir, added); err != nil {
		return err
	}
	return st.DeleteSysctl(sklookup.ReservedPorts)
}

// recordedReserved is what an earlier process recorded.
func recordedReserved(st *store.Store) string {
	for _, c := range st.Sysctls() {
		if c.Path == sklookup.ReservedPorts {
			return c.New
		}
	}
	return ""
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

// leave is Table's.
func (r openedRanges) leave() {
	if r.Table != nil {
		r.Leave()
	}
}

func (r openedRanges) Close() error {
	if r.Table == nil {
		return nil
	}
	return r.Table.Close()
}
