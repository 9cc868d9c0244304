package portmap

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
	for _, s := range portSockets(p) {
		local, ok := netip.AddrFromSlice(s.ID.Source)
		if !ok || s.ID.SourcePort != port {
			continue
		}
		wildcard := local.IsUnspecified()
		if local = local.Unmap(); s.Family == unix.AF_INET && local.Is6() {
			local = netip.IPv4Unspecified()
		}
		if addr.IsValid() && !addr.IsUnspecified() && !wildcard && local != addr {
			continue
		}
		if addr.IsValid() && !wildcard && local.Is4() != addr.Is4() {
			continue
		}
		h := holder{addr: local, uid: s.UID}
		h.pid, h.comm = socketProcess(s.INode)
		return h, true
	}
	return holder{}, false
}

// portSockets lists TCP listeners, or UDP sockets, of both families.
func portSockets(p Proto) (all []*netlink.Socket) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		switch p {
		case TCP:
			socks, _ := netlink.SocketDiagTCP(family)
			for _, s := range socks {
				if s.State == netlink.TCP_LISTEN {
					all = append(all, s)
				}
			}
		case UDP:
			socks, _ := netlink.SocketDiagUDP(family)
			all = append(all, socks...)
		}
	}
	return all
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
		return pid, strings.TrimSpace(string(b))
	}
	return "", ""
}

// hostAddress is an address of this host to publish on instead of all: the
// first global one of the family, an example where there is none.
func hostAddress(is4 bool) netip.Addr {
	family, example := netlink.FAMILY_V6, netip.MustParseAddr("2001:db8::2")
	if is4 {
		family, example = netlink.FAMILY_V4, netip.MustParseAddr("192.0.2.2")
	}
	addrs, err := netlink.AddrList(nil, family)
	if err != nil {
		return example
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap().IsGlobalUnicast() {
			return ip.Unmap()
		}
	}
	return example
}
