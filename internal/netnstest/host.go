package netnstest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is another network namespace: a container, or a host in the
// neighbourhood.
type Host struct {
	t  testing.TB
	ns netns.NsHandle
}

// NewHost makes a namespace with lo up. It ends with the test.
func NewHost(t testing.TB) *Host {
	t.Helper()
	h := &Host{t: t}
	err := onThread(func() error {
		ns, err := netns.New()
		if err != nil {
			return err
		}
		h.ns = ns
		return linkUp("lo")
	})
	require.NoError(t, err, "make a network namespace")
	t.Cleanup(func() { _ = h.ns.Close() })
	return h
}

// FD is the namespace as a file descriptor, open until the test ends.
func (h *Host) FD() int { return int(h.ns) }

// Do runs f on a thread inside the namespace. Sockets that f opens stay there;
// goroutines that f starts do not run there.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(h.ns); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread that ends with it, so that f may change the
// thread's namespace. It is never the main thread, which would not end, and whose
// namespace others take for the process's (/proc/PID/ns/net).
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f) // this one is taken
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// Connect makes a veth pair between the tests' own namespace (interface here)
// and h (interface there), gives both ends their addresses and sets them up.
// With a bridge, the near end becomes its port and hereAddrs must be empty.
func (h *Host) Connect(here, there, bridge string, hereAddrs, thereAddrs []string) {
	h.t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = here
	v := &netlink.Veth{LinkAttrs: la, PeerName: there, PeerNamespace: netlink.NsFd(int(h.ns))}
	require.NoError(h.t, netlink.LinkAdd(v), "make veth %s", here)
	h.t.Cleanup(func() {
		if l, err := netlink.LinkByName(here); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	if bridge != "" {
		br, err := netlink.LinkByName(bridge)
		require.NoError(h.t, err)
		require.NoError(h.t, netlink.LinkSetMaster(v, br))
		require.NoError(h.t, netlink.LinkSetHairpin(v, true))
	}
	require.NoError(h.t, addAddrs(here, hereAddrs))
	require.NoError(h.t, h.Do(func() error { return addAddrs(there, thereAddrs) }))
}

// Route adds a default route in h by way of gw.
func (h *Host) Route(gw string) {
	h.t.Helper()
	require.NoError(h.t, h.Do(func() error {
		ip := net.ParseIP(gw)
		dst := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if ip.To4() == nil {
			dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: ip})
	}), "default route by way of %s", gw)
}

// Bridge makes a bridge in the tests' own namespace with the addresses given
// and sets it up. It ends with the test.
func Bridge(t testing.TB, name string, addrs ...string) {
	t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name = name
	br := &netlink.Bridge{LinkAttrs: la}
	require.NoError(t, netlink.LinkAdd(br), "make bridge %s", name)
	t.Cleanup(func() { _ = netlink.LinkDel(br) })
	require.NoError(t, addAddrs(name, addrs))
}

func addAddrs(name string, addrs []string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("parse address %s: %w", s, err)
		}
		if netip.MustParsePrefix(s).Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", s, name, err)
		}
	}
	return linkUp(name)
}

// Sysctl sets a value below /proc/sys/net in the tests' own namespace and puts
// the old one back when the test ends.
func Sysctl(t testing.TB, path, value string) {
	t.Helper()
	file := "/proc/sys/net/" + path
	old, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(value), 0o644))
	t.Cleanup(func() { _ = os.WriteFile(file, old, 0o644) })
}
