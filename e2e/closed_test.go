package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/enginetest"
)

// TestClosed sends what must not arrive, from wherever somebody could send it,
// and counts at the receiver. It does so again when the rules were flushed and
// have come back, while the daemon is away, and after its restart. What must
// arrive does so each time, from the same senders and at the same receivers.
//
// With -closed-table the same goes to Docker's own driver, of which nothing is
// asserted, and the table of a Markdown file is written.
func TestClosed(t *testing.T) {
	table := newClosedTable()
	if *closedTable == "" {
		t.Parallel()
	} else {
		aroundTable(t, *closedTable) // before minutes have been spent
		t.Run("built-in", table.builtIn)
		t.Run("built-in of a newer engine", func(t *testing.T) {
			t.Setenv("ENGINE", *closedNewer)
			table.builtIn(t)
		})
		t.Cleanup(func() { table.write(t, *closedTable) })
	}
	for _, mapper := range []string{"nftables", "iptables"} {
		t.Run(mapper, func(t *testing.T) {
			t.Parallel()
			l := newClosedLab(t, mapper)
			l.checkControls()
			l.requireClosed("as started")
			l.requireNoRouter()
			l.flush()
			require.NoError(t, l.stopDaemon())
			l.requireClosed("while the daemon is away")
			require.NoError(t, l.startDaemon(""))
			l.requireClosed("after a restart")
			table.add("Portolan, "+mapper, l.rows(), nil)
		})
	}
}

// shot is a probe with one protocol.
type shot struct {
	probe
	proto proto
	token token
}

func (s shot) arrived() bool { return s.to.has(s.token) }

func (s shot) String() string { return fmt.Sprintf("%s: %s", s.proto, s.probe) }

var lastToken atomic.Uint32

func newToken() token { return token(lastToken.Add(1)) }

// shots are probes with every protocol.
func shots(probes []probe) (out []shot) {
	for _, p := range probes {
		for _, pr := range protos {
			out = append(out, shot{p, pr, newToken()})
		}
	}
	return out
}

// fire sends all of them: frames in order, and what programs would send beside
// them.
func (l *closedLab) fire(all []shot) {
	l.t.Helper()
	var dialled sync.WaitGroup
	var from *spot
	var packets [][]byte
	flush := func() {
		if from != nil {
			require.NoError(l.t, from.sendFrames(packets))
		}
		packets = nil
	}
	for _, s := range all {
		if s.dial {
			dialled.Go(func() { s.from.dial(s.proto, s.dst, s.token) })
			continue
		}
		if s.from != from {
			flush()
			from = s.from
		}
		src := s.src
		if !src.IsValid() {
			src = s.from.addr(s.is4())
		}
		packets = append(packets, packet(s.proto, netip.AddrPortFrom(src, newClientPort()), s.dst, s.token))
	}
	flush()
	dialled.Wait()
}

// requireOpen waits until every control has arrived. Sent anew each time, they
// may come late: an address is not resolved yet, or rules are not back.
func (l *closedLab) requireOpen(state string) {
	l.t.Helper()
	missing := shots(l.open())
	if l.builtIn {
		l.fire(missing)
		if err := l.await(&missing); err != nil {
			l.t.Logf("%s: did not arrive:\n%v", state, err)
		}
		return
	}
	require.NoError(l.t, enginetest.Poll(patience, func() error {
		for i := range missing {
			missing[i].token = newToken()
		}
		l.fire(missing)
		return l.await(&missing)
	}), "%s: what must arrive does not", state)
}

// await gives shots a moment to arrive, and leaves those that have not.
func (l *closedLab) await(missing *[]shot) error {
	return enginetest.Poll(500*time.Millisecond, func() error {
		*missing = slices.DeleteFunc(*missing, shot.arrived)
		var errs []error
		for _, s := range *missing {
			errs = append(errs, errors.New(s.String()))
		}
		return errors.Join(errs...)
	})
}

// probe sends all probes of the rows and returns the shots that arrived, by the
// row's title. What must arrive comes after them, and says that they are through.
// Docker's own driver has no such duty: it gets the same time.
func (l *closedLab) probe(state string, but ...func(closedRow) bool) map[string][]shot {
	l.t.Helper()
	l.requireOpen(state)
	rows := l.rows()
	for _, leaveOut := range but {
		rows = slices.DeleteFunc(rows, leaveOut)
	}
	byRow := make([][]shot, len(rows))
	for i, r := range rows {
		byRow[i] = shots(r.probes)
	}
	l.fire(slices.Concat(byRow...))
	l.requireOpen(state)
	arrived := map[string][]shot{}
	for i, r := range rows {
		arrived[r.title] = slices.DeleteFunc(byRow[i], func(s shot) bool { return !s.arrived() })
	}
	return arrived
}

// requireClosed fails if anything arrives, but for rows that are of no concern
// in this state.
func (l *closedLab) requireClosed(state string, but ...func(closedRow) bool) {
	l.t.Helper()
	var lines []string
	for title, arrived := range l.probe(state, but...) {
		for _, s := range arrived {
			lines = append(lines, title+": "+s.String())
		}
	}
	slices.Sort(lines)
	require.Empty(l.t, lines, "%s: arrived:\n%s", state, strings.Join(lines, "\n"))
}

// checkControls makes sure that no probe can stay away for want of a way:
// something else from its sender arrives, in the same family, and something else
// arrives at its receiver.
func (l *closedLab) checkControls() {
	type end struct {
		*spot
		is4 bool
	}
	sends, receives := map[end]bool{}, map[end]bool{}
	for _, p := range l.open() {
		sends[end{p.from, p.is4()}], receives[end{p.to, p.is4()}] = true, true
	}
	for _, r := range l.rows() {
		require.NotEmpty(l.t, r.probes, r.title)
		for _, p := range r.probes {
			require.True(l.t, sends[end{p.from, p.is4()}], "%s: nothing arrives from the sender of %s", r.title, p)
			require.True(l.t, receives[end{p.to, p.is4()}], "%s: nothing arrives at the receiver of %s", r.title, p)
		}
	}
}

// flush takes away all rules that root can take away. The table of the nftables
// mapper is the kernel's to keep, so nothing opens; what the iptables mapper has
// comes back in a moment. Docker repairs nothing of its own: that is done here.
func (l *closedLab) flush() {
	l.t.Helper()
	before := l.ownRules()
	docker := map[string]string{}
	for _, tool := range []string{"iptables", "ip6tables"} {
		var lines []string
		for line := range strings.Lines(l.must("host", tool+"-save") + "\n") {
			if !isOwn(line) {
				lines = append(lines, line)
			}
		}
		docker[tool] = strings.Join(lines, "")
	}
	if l.mapper == "nftables" {
		for _, family := range []string{"ip", "ip6"} { // of Docker's own nftables backend
			if table, err := enginetest.Run(l.command("host", "nft", "list", "table", family, "docker-bridges")); err == nil {
				docker["nft"] += table + "\n"
			}
		}
		l.must("host", "nft", "flush", "ruleset")
		l.requireClosed("flushed", func(r closedRow) bool { return r.byDocker })
	} else {
		for _, tool := range []string{"iptables", "ip6tables"} {
			for _, table := range []string{"raw", "nat", "filter"} {
				l.must("host", tool, "-t", table, "-F")
			}
		}
		l.requireOwn(before) // and then Docker's rules are appended
	}
	restore := map[string][]string{"iptables": {"iptables-restore", "--noflush"}, "ip6tables": {"ip6tables-restore", "--noflush"}, "nft": {"nft", "-f", "-"}}
	for tool, rules := range docker {
		cmd := l.command(append([]string{"host"}, restore[tool]...)...)
		cmd.Stdin = strings.NewReader(rules)
		_, err := enginetest.Run(cmd)
		require.NoError(l.t, err)
	}
	l.requireOwn(before)
	l.requireClosed("after a repair")
}

func (l *closedLab) requireOwn(rules enginetest.Snapshot) {
	l.t.Helper()
	require.NoError(l.t, enginetest.Poll(patience, func() error {
		if diff := enginetest.Diff(rules, l.ownRules()); diff != "" {
			return errors.New(diff)
		}
		return nil
	}), "the rules are repaired")
}

// isOwn says whether a line of iptables-save is the daemon's.
func isOwn(line string) bool {
	return strings.Contains(line, "PORTOLAN") || strings.Contains(line, "portolan")
}

// ownRules are those of the daemon.
func (l *closedLab) ownRules() enginetest.Snapshot {
	own := enginetest.Snapshot{}
	all := l.take()
	for _, kind := range []string{"iptables-save", "ip6tables-save"} {
		own[kind] = slices.DeleteFunc(all[kind], func(line string) bool { return !isOwn(line) })
	}
	table := ""
	for _, line := range all["nft list ruleset"] {
		if strings.HasPrefix(line, "table ") {
			table = line
		}
		if strings.HasPrefix(table, "table inet portolan") {
			own["nft list ruleset"] = append(own["nft list ruleset"], line)
		}
	}
	return own
}
