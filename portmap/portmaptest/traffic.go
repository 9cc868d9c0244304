package portmaptest

import (
	"testing"

	"github.com/portolan/portolan/portmap"
)

// TestTraffic sends packets through what open's Mapper sets up, from every
// place from which a published port must be reached, and from those from which
// nothing must be. It uses the namespace of the test binary as the Docker host,
// changes its rules and flushes them, and wants the programs iptables,
// ip6tables and nft there.
func TestTraffic(t *testing.T, open func(*testing.T) portmap.Mapper) {
	l := newLab(t, open(t))
	cases := []struct {
		name string
		run  func(*lab)
	}{
		{"published port", published},
		{"ranges", ranges},
		{"one host address", oneAddress},
		{"loopback", loopback},
		{"unmap and move", unmapAndMove},
		{"sctp", sctp},
		{"hairpin without br_netfilter", hairpin("0")},
		{"hairpin with br_netfilter", hairpin("1")},
		{"outbound", outbound},
		{"closed with policy drop", closedByDrop},
		{"closed with policy accept", closedByUs},
		{"another driver's bridge", foreignBridge},
		{"no communication between containers, without br_netfilter", noICC("0")},
		{"no communication between containers, with br_netfilter", noICC("1")},
		{"no communication in another network", noICCElsewhere},
		{"internal", internal},
		{"routed", routed},
		{"nat unprotected", natUnprotected},
		{"trusted interfaces", trusted},
		{"clients that only the proxy can serve", proxyClients},
		{"broadcast", broadcast},
		{"user drops", userDrops},
		{"docker without a return", withoutReturn},
		{"docker starts later", dockerLater},
		{"guard", guarded},
		{"nothing left", nothingLeft},
	}
	for _, c := range cases {
		l.with(c.name, func(l *lab) {
			l.dockerRules(true)
			l.publish()
			c.run(l)
		})
	}
}

// with runs a subtest in the lab.
func (l *lab) with(name string, run func(*lab)) {
	l.Run(name, func(t *testing.T) {
		sub := *l
		sub.T = t
		run(&sub)
	})
}
