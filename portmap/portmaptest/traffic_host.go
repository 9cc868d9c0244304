package portmaptest

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/stretchr/testify/require"
)

// userDrops has a rule of the administrator's in DOCKER-USER, put there before
// and after ours.
func userDrops(l *lab) {
	serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
	serve(l.T, l.neighbour, netip.Addr{}, "udp:82", "tcp:82")
	drop := func(how string) {
		run(l.T, "iptables", how, "DOCKER-USER", "-s", neighbour4.String(), "-j", "DROP")
		run(l.T, "ip6tables", how, "DOCKER-USER", "-s", neighbour6.String(), "-j", "DROP")
	}
	verify := func() {
		requireReached(l.T, probes("host", here{}, 8080, localhost4, lan4, lan6)...)
		requireReached(l.T, probes("other network", l.c4, 8080, lan4, lan6)...)
		requireSilent(l.T, slices.Concat(
			probes("neighbour", l.neighbour, 8080, lan4, lan6),
			probes("answers to the container", l.c2, 82, neighbour4, neighbour6))...)
	}
	l.publish(publish(l, target2, both("8080->80")...))
	requireReached(l.T, probes("neighbour", l.neighbour, 8080, lan4, lan6)...)
	drop("-I")
	verify()
	for _, returns := range []bool{true, false} {
		l.dockerRules(returns)
		if returns {
			drop("-I")
		} else {
			drop("-A")
		}
		l.publish(publish(l, target2, both("8080->80")...))
		verify()
	}
}

func withoutReturn(l *lab) {
	l.dockerRules(false)
	l.with("published port", published)
	l.with("outbound", outbound)
	l.with("hairpin", hairpin("1"))
}

// dockerLater starts the engine after us, which flushes nothing but inserts its
// own chains before ours; then a firewall flushes all of it.
func dockerLater(l *lab) {
	flushAll(l.T)
	l.publish(publish(l, target2, both("8080->80")...))
	serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
	serve(l.T, l.neighbour, netip.Addr{}, "udp:82", "tcp:82")
	verify := func() {
		requireReached(l.T, probes("neighbour", l.neighbour, 8080, lan4, lan6)...)
		requireReached(l.T, probes("itself", l.c2, 8080, lan4, lan6)...)
		requireReached(l.T, probes("same network", l.c3, 80, target2.IPv4, target2.IPv6)...)
		requireReached(l.T, probes("out", l.c2, 82, neighbour4, neighbour6)...)
	}
	verify()
	l.dockerChains(true)
	_, err := l.m.Check()
	require.NoError(l.T, err)
	verify()
	l.dockerRules(true)
	repaired, err := l.m.Check()
	require.NoError(l.T, err)
	require.True(l.T, repaired)
	verify()
	repaired, err = l.m.Check()
	require.NoError(l.T, err)
	require.False(l.T, repaired)
}

func guarded(l *lab) {
	flushAll(l.T)
	l.publish(publish(l, target2, both("8080->80")...))
	serve(l.T, l.c2, netip.Addr{}, "udp:80", "tcp:80")
	serve(l.T, l.neighbour, netip.Addr{}, "udp:82", "tcp:82")
	serve(l.T, l.foreign, netip.Addr{}, "udp:81", "tcp:81")
	through4, through6 := probes("through", l.neighbour, 81, foreign4), probes("through", l.neighbour, 81, foreign6)
	requireReached(l.T, append(through4, through6...)...)
	require.NoError(l.T, l.m.Guard(true, false))
	requireSilent(l.T, through4...)
	requireReached(l.T, through6...)
	require.NoError(l.T, l.m.Guard(true, true))
	requireSilent(l.T, append(through4, through6...)...)
	requireReached(l.T, probes("neighbour", l.neighbour, 8080, lan4, lan6)...)
	requireReached(l.T, probes("out", l.c2, 82, neighbour4, neighbour6)...)
	requireReached(l.T, probes("same network", l.c3, 80, target2.IPv4, target2.IPv6)...)
	require.NoError(l.T, l.m.Guard(false, false))
	requireReached(l.T, append(through4, through6...)...)
}

// nothingLeft compares the host's rules before the first network with those
// after the last.
func nothingLeft(l *lab) {
	l.load(nil)
	l.dockerRules(true)
	clean := l.rules()
	l.publish(publish(l, target2, both("8080->80")...))
	require.NotEqual(l.T, clean, l.rules())
	require.NoError(l.T, l.m.RemoveNetwork(net0.ID))
	require.NoError(l.T, l.m.RemoveNetwork(net1.ID))
	require.Equal(l.T, clean, l.rules())
	l.publish(publish(l, target2, both("8080->80")...))
	l.load(nil)
	require.Equal(l.T, clean, l.rules())
}

// rules are all rules of the namespace but for the built-in chains of tables
// that nobody had before; those are made by the first look at them.
func (l *lab) rules() string {
	var rules []string
	for line := range strings.Lines(run(l.T, "nft", "list", "ruleset")) {
		if strings.Contains(strings.ToLower(line), "portolan") {
			rules = append(rules, line)
		}
	}
	for _, tool := range []string{"iptables", "ip6tables"} {
		for _, table := range []string{"raw", "nat", "filter"} {
			rules = append(rules, run(l.T, tool, "-t", table, "-S"))
		}
	}
	return strings.Join(rules, "\n")
}
