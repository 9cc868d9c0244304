package portmap

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/rtnetlink"
)

// holder is who keeps a port from being bound, as far as the kernel tells:
// sock_diag always has the address and the user, /proc has the process where
// this program may see it (a managed plugin has a process namespace of its own).
type holder struct {
	addr netip.Addr
	uid  uint32
	comm string // "" where /proc does not show it
	pid  string
}

func (h holder) String() string {
	if h.comm == "" {
		return fmt.Sprintf("a process of user %d on %s", h.uid, h.addr)
	}
	return fmt.Sprintf("%s (pid %s) on %s", h.comm, h.pid, h.addr)
}

// findHolder looks for the socket that keeps addr's port from being bound.
func findHolder(p Proto, addr netip.Addr, port uint16) (holder, bool) {
	for _, s := range portSockets(p, port) {
		local, ok := netip.AddrFromSlice(s.ID.Source)
		if !ok {
			continue
		}
		// An IPv6 wildcard is taken for one of both families, which it mostly is.
		both := local == netip.IPv6Unspecified()
		local = local.Unmap()
		if addr.IsValid() && !both {
			wildcard := addr.IsUnspecified() || local.IsUnspecified()
			if local.Is4() != addr.Is4() || !wildcard && local != addr {
				continue
			}
		}
		h := holder{addr: local, uid: s.UID}
		h.pid, h.comm = socketProcess(s.INode)
		return h, true
	}
	return holder{}, false
}

// portSockets lists the sockets of both families that are bound to a port, TCP
// listeners first: a client's connection that happens to have the port keeps it
// from being bound too.
func portSockets(p Proto, port uint16) []*netlink.Socket {
	var first, then []*netlink.Socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var socks []*netlink.Socket
		switch p {
		case TCP:
			socks, _ = netlink.SocketDiagTCP(family)
		case UDP:
			socks, _ = netlink.SocketDiagUDP(family)
		}
		for _, s := range socks {
			switch {
			case s.ID.SourcePort != port || s.INode == 0: // 0: TIME_WAIT, and not yet accepted
			case p == TCP && s.State != netlink.TCP_LISTEN:
				then = append(then, s)
			default:
				first = append(first, s)
			}
		}
	}
	return append(first, then...)
}

// socketProcess finds the process that has a socket open.
func socketProcess(inode uint32) (pid, comm string) {
	want := fmt.Sprintf("socket:[%d]", inode)
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "", ""
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err != nil || link != want {
			continue
		}
		pid = strings.Split(fd, "/")[2]
		b, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			return "", ""
		}
		return pid, printable(strings.TrimSpace(string(b)))
	}
	return "", ""
}

// printable is a name without what a terminal would obey: every process may give
// itself any, and somebody else reads it in an error.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, name)
}

// hostAddress is an address of this host to publish on in place of other: the
// first global one of its family, an example where there is none.
func hostAddress(other netip.Addr) netip.Addr {
	family, example := netlink.FAMILY_V6, netip.MustParseAddr("2001:db8::2")
	if other.Is4() {
		family, example = netlink.FAMILY_V4, netip.MustParseAddr("192.0.2.2")
	}
	addrs, err := rtnetlink.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
	if err != nil {
		return example
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); ok && ip.IsGlobalUnicast() && ip != other {
			return ip
		}
	}
	return example
}
