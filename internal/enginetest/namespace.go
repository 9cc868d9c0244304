package enginetest

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The engine's host and its neighbour share a wire; RFC 5737 and RFC 3849 keep
// these addresses for examples, so that they exist nowhere else.
const (
	HostIPv4      = "198.51.100.1"
	HostIPv6      = "2001:db8:1::1"
	HostLinkLocal = "fe80::1"
	HostInterface = "lan0"
	PeerIPv4      = "198.51.100.2"
	PeerIPv6      = "2001:db8:1::2"
	PeerLinkLocal = "fe80::2"
	PeerInterface = "eth0"
	BroadcastIPv4 = "198.51.100.255"
)

const namespaceDir = "/run/netns"

// Namespace is a network namespace with a name, as `ip netns` makes it.
type Namespace struct{ Name string }

func newNamespace(name string) (Namespace, error) {
	n := Namespace{Name: name}
	err := onThread(func() error {
		ns, err := netns.NewNamed(name)
		if err != nil {
			return fmt.Errorf("make network namespace %s: %w", name, err)
		}
		defer ns.Close()
		return setUp("lo")
	})
	return n, err
}

// Path is the file that stands for the namespace.
func (n Namespace) Path() string { return filepath.Join(namespaceDir, n.Name) }

// Command is a command that runs in the namespace. It shares everything else
// with this process: unlike `ip netns exec`, nsenter leaves the mounts, and with
// them the cgroups, alone.
func (n Namespace) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + n.Path(), "--", name}, args...)...)
}

// Do runs f on a thread inside the namespace. Sockets that f opens stay there;
// goroutines that f starts do not run there.
func (n Namespace) Do(f func() error) error { return InNetwork(n.Path(), f) }

// InNetwork is Do for the network namespace that a file stands for, as
// /proc/PID/ns/net.
func InNetwork(path string, f func() error) error {
	return onThread(func() error {
		ns, err := netns.GetFromPath(path)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", path, err)
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return f()
	})
}

// setForwarding sets net.ipv4.ip_forward, which a new namespace has from the
// machine. A fresh host forwards nothing, and only there dockerd sets the policy
// of FORWARD to DROP; dockerd's nftables backend wants it on and leaves it alone.
func (n Namespace) setForwarding(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	return n.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte(value), 0o644)
	})
}

// remove takes the name away. The namespace ends with the last process in it.
func (n Namespace) remove() error {
	err := unix.Unmount(n.Path(), unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", n.Path(), err)
	}
	if err := os.Remove(n.Path()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// onThread runs f on a thread that ends with it, so that f may change the
// thread's namespace.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// connect lays the wire between the engine's host and its neighbour.
func connect(host, peer Namespace) error {
	return host.Do(func() error {
		far, err := netns.GetFromPath(peer.Path())
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", peer.Name, err)
		}
		defer far.Close()
		la := netlink.NewLinkAttrs()
		la.Name = HostInterface
		veth := &netlink.Veth{LinkAttrs: la, PeerName: PeerInterface, PeerNamespace: netlink.NsFd(int(far))}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make veth %s: %w", HostInterface, err)
		}
		if err := setUp(HostInterface, HostIPv4+"/24", HostIPv6+"/64", HostLinkLocal+"/64"); err != nil {
			return err
		}
		return peer.Do(func() error { return setUp(PeerInterface, PeerIPv4+"/24", PeerIPv6+"/64", PeerLinkLocal+"/64") })
	})
}

func setUp(name string, addrs ...string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	// A link-local address of the kernel's would be there some time later.
	if err := netlink.LinkSetIP6AddrGenMode(l, nl.IN6_ADDR_GEN_MODE_NONE); err != nil {
		return fmt.Errorf("set address generation of interface %s: %w", name, err)
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("parse address %s: %w", s, err)
		}
		if netip.MustParsePrefix(s).Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD // usable at once
		} else {
			a.Broadcast = broadcast(netip.MustParsePrefix(s)).AsSlice()
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w", s, name, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set interface %s up: %w", name, err)
	}
	return nil
}

// broadcast is the last address of an IPv4 subnet of 24 bits.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	b[3] = 255
	return netip.AddrFrom4(b)
}
