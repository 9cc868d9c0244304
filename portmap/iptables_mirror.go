package portmap

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/internal/rtnetlink"
)

// iptMirror is what the rules are made of.
type iptMirror struct {
	mirror
	guard4, guard6 bool
	uplinks        []string // bridges that lead to a LAN
	foreign        []string // interfaces that lead to other drivers' containers; + is any ending
}

func newIPTMirror() *iptMirror {
	return &iptMirror{mirror: newMirror()}
}

// clone is a copy to change, and to keep if the kernel takes it.
func (m *iptMirror) clone() *iptMirror {
	next := *m
	next.mirror = m.mirror.clone()
	return &next
}

// addNetwork refuses names that would be something else in a rule.
func (m *iptMirror) addNetwork(n Network) error {
	for _, name := range append([]string{n.Bridge}, n.Trusted...) {
		if name == "" || len(name) > 15 || strings.ContainsFunc(name, iptUnsafe) {
			return fmt.Errorf("add network %.12s to iptables: bad interface name %q", n.ID, name)
		}
	}
	m.nets[n.ID] = n
	return nil
}

// iptUnsafe says whether a letter in a name may end or change a word of a rule:
// + at the end of an interface's name is a pattern.
func iptUnsafe(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune("\"'\\+!", r)
}

// publish refuses IDs that would be something else in a rule.
func (m *iptMirror) publish(p Publication) error {
	if p.Endpoint == "" || len(p.Endpoint) > 200 || strings.ContainsFunc(p.Endpoint, iptUnsafe) {
		return fmt.Errorf("map ports of endpoint %.12q: bad endpoint ID", p.Endpoint)
	}
	return m.mirror.publish(p)
}

// readBridges looks for other drivers' bridges. Docker's usual names are among
// them whether such a bridge is there or not, as one may be made any time; one
// with another name is seen by the next Check. Without an answer of the kernel
// it all stays as it was.
func (m *iptMirror) readBridges() {
	links, err := rtnetlink.Dump(netlink.LinkList)
	if err != nil {
		return
	}
	uplinks, err := uplinkBridges()
	if err != nil {
		return
	}
	own := map[string]bool{}
	for _, n := range m.nets {
		own[n.Bridge] = true
	}
	foreign := []string{"docker+", "br-+"}
	for _, l := range links {
		name := l.Attrs().Name
		if l.Type() != "bridge" || own[name] || slices.Contains(uplinks, name) ||
			strings.HasPrefix(name, "docker") || strings.HasPrefix(name, "br-") || strings.ContainsFunc(name, iptUnsafe) {
			continue
		}
		foreign = append(foreign, name)
	}
	slices.Sort(foreign)
	m.uplinks, m.foreign = uplinks, foreign
}
