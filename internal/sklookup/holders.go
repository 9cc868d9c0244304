package sklookup

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// InUseError is ports that other processes have.
type InUseError struct {
	Port uint16 // the first of them
	More int    // how many more there are
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("port %d, and %d more: %s", e.Port, e.More, unix.EADDRINUSE)
}

// Unwrap returns EADDRINUSE.
func (e *InUseError) Unwrap() error { return unix.EADDRINUSE }

// Taken returns the first port that is in use, and how many more are.
func (e *InUseError) Taken() (first uint16, more int) { return e.Port, e.More }

// findHolders looks for sockets that have one of the ports: TCP listeners, and
// UDP sockets that take datagrams from anybody. A connected socket is no obstacle,
// as the kernel finds it before it asks the program.
func (t *Table) findHolders(proto uint8, host netip.Addr, first, last uint16) error {
	var taken []uint16
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		dump, state := netlink.SocketDiagTCP, uint8(netlink.TCP_LISTEN)
		if proto == unix.IPPROTO_UDP {
			dump, state = netlink.SocketDiagUDP, netlink.TCP_CLOSE
		}
		socks, err := dump(family)
		if err != nil {
			return fmt.Errorf("look for who has a port: %w", err)
		}
		for _, s := range socks {
			port := s.ID.SourcePort
			if s.State != state || port < first || port > last || slices.Contains(t.inodes, uint64(s.INode)) {
				continue
			}
			if local, ok := netip.AddrFromSlice(s.ID.Source); ok && overlap(local, host) {
				taken = append(taken, port)
			}
		}
	}
	slices.Sort(taken)
	if taken = slices.Compact(taken); len(taken) > 0 {
		return &InUseError{taken[0], len(taken) - 1}
	}
	return nil
}

// overlap says whether a socket's address is one of a host's. A socket of :: is
// taken for one of both families, which it mostly is.
func overlap(local, host netip.Addr) bool {
	if !host.IsValid() || local == netip.IPv6Unspecified() {
		return true
	}
	local, host = local.Unmap(), host.Unmap()
	return local == host || local.Is4() == host.Is4() && (local.IsUnspecified() || host.IsUnspecified())
}
