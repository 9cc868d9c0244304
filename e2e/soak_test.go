package e2e

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/enginetest"
)

// The environment of TestSoak: how long it takes (1h, by default 40s), with which
// mapper (nftables), and which file its log is written to.
const (
	soakTimeVariable   = "SOAK"
	soakMapperVariable = "SOAK_MAPPER"
	soakLogVariable    = "SOAK_LOG"
)

// What may differ between the first quiet moment and the last: connections of
// the engine that are kept open, and memory that Go has not given back yet.
// Rules, devices and sockets may not differ at all.
const (
	soakFiles      = 8
	soakGoroutines = 8
	soakMemory     = 8 << 20
)

// TestSoak publishes and releases ports at random, with traffic over every path
// meanwhile, and a daemon that is stopped and killed again and again; then the
// same for longer with one daemon. That has to be as it was when it had warmed
// up: memory, files, goroutines, conntrack table, rules, devices, sockets.
//
// Traffic that the kernel carries is never lost, whatever becomes of the daemon;
// the rest may fail while it is away, and no answer is ever wrong. One thing is
// not Portolan's doing: when an engine of 20.10 creates a network, of any driver,
// it takes its jump to DOCKER-USER away and puts it back, and what other hosts
// send over IPv4 in between its DROP policy drops.
func TestSoak(t *testing.T) {
	t.Parallel()
	total, err := time.ParseDuration(cmp.Or(os.Getenv(soakTimeVariable), "40s"))
	require.NoError(t, err)
	s := newSoak(t, cmp.Or(os.Getenv(soakMapperVariable), "nftables"), max(5*time.Second, min(total/20, 30*time.Second)))
	rest := total - 4*s.aging
	s.phase("restarts", rest/4, true)
	s.phase("warm-up", rest/4, false)
	s.quiet("warm")
	s.phase("steady", rest/2, false)
	s.quiet("end")
	s.stop()
	s.writeLog(total)
	s.compare()
}

// newShippedHost is newPlainHost with the program of the managed plugin, which is
// built without the race detector: that takes more and more memory of its own, here
// 1.6 MiB a minute.
func newShippedHost(t *testing.T, mapper string, flags ...string) *host {
	t.Helper()
	dir, err := filepath.Abs("../build/plugin/rootfs")
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "portolan"), "make plugin makes it")
	h := newHost(t)
	h.export(&testscript.Env{Values: map[any]any{}})
	h.setenv("PATH", dir+string(os.PathListSeparator)+h.vars.Getenv("PATH"))
	require.NoError(t, h.startDaemon(mapper, flags...))
	require.NoError(t, h.healthy(patience))
	return h
}

// soak is one run.
type soak struct {
	*host
	began time.Time
	// aging is how long a flow that nobody uses stays in the conntrack table and
	// in the proxy: short, so that both are empty soon after the traffic has ended.
	aging   time.Duration
	away    spells // when no daemon serves
	creates spells // when the engine creates a network
	streams sync.WaitGroup
	hangUp  context.CancelFunc // ends the streams
	paths   []*soakPath

	mu       sync.Mutex // guards below
	failures []string
	counts   map[string]int // what has been done, by name
	samples  []sample
	rules    map[string]enginetest.Snapshot
}

// sample is what the daemon and the kernel hold at a moment.
type sample struct {
	name string
	at   time.Duration
	resources
	conntrack, ruleLines int
}

// spells are times that may overlap.
type spells struct {
	mu             sync.Mutex // guards below
	begun, lasting int
}

// begin begins one, which lasts until end is called.
func (s *spells) begin() (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun++
	s.lasting++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lasting--
	}
}

// now is for since; it is negative within a spell.
func (s *spells) now() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lasting > 0 {
		return -1
	}
	return s.begun
}

// since says whether any part of a spell was between then, as now has told, and
// this moment.
func (s *spells) since(then int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return then < 0 || then != s.begun
}

// resources are those of /Portolan.Resources.
type resources struct {
	Goroutines, Threads, OpenFiles int
	ResidentBytes, HeapBytes       uint64
}

func newSoak(t *testing.T, mapper string, aging time.Duration) *soak {
	s := &soak{
		host: newShippedHost(t, mapper, "--udp-timeout", aging.String()), began: time.Now(), aging: aging,
		counts: map[string]int{}, rules: map[string]enginetest.Snapshot{},
	}
	s.ageFast()
	for _, args := range []string{
		"network create -d portolan --subnet 172.30.0.0/24 --ipv6 --subnet fd00:30::/64 n1",
		"network create -d portolan --subnet 172.31.0.0/24 n2",
		// The image's entrypoint is demo. A long range has an answer at both ends.
		"run -d --name dual --network n1 -p 5300:7000/udp -p 5300:7000 -p 30000-31535:30000-31535/udp " + image + " echo -raw -tcp 7000 -udp 7000,30000,31535",
		"run -d --name four --network n2 -p 5301:7000/udp -p 5301:7000 " + image + " echo -raw -tcp 7000 -udp 7000",
	} {
		_, err := s.docker(strings.Fields(args)...)
		require.NoError(t, err)
	}
	s.paths = s.soakPaths()
	for _, p := range s.paths {
		for _, network := range p.networks {
			require.NoError(t, enginetest.Poll(patience, func() error {
				return p.ns.Do(func() error { return p.flow(network, 100, time.Second) })
			}), "%s, %s", p.name, network)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.hangUp = cancel
	for _, p := range s.paths {
		if p.kernel {
			s.streams.Add(1)
			go s.stream(ctx, p)
		}
	}
	return s
}

// ageFast has the kernel forget flows soon, until the test has ended.
func (s *soak) ageFast() {
	seconds := fmt.Sprint(s.aging.Seconds())
	for _, name := range []string{"udp_timeout", "udp_timeout_stream", "tcp_timeout_time_wait", "tcp_timeout_close", "tcp_timeout_close_wait", "tcp_timeout_fin_wait", "tcp_timeout_last_ack", "tcp_timeout_syn_sent", "icmp_timeout", "icmpv6_timeout"} {
		key := "net.netfilter.nf_conntrack_" + name
		old, err := s.engine.Exec("sysctl", "-n", key)
		require.NoError(s.t, err)
		set := func(value string) error {
			_, err := s.engine.Exec("sysctl", "-qw", key+"="+value)
			return err
		}
		require.NoError(s.t, set(seconds))
		s.t.Cleanup(func() { assert.NoError(s.t, set(old)) })
	}
}

// phase keeps everything busy for some time.
func (s *soak) phase(name string, d time.Duration, restarts bool) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var work sync.WaitGroup
	for i := range 2 {
		work.Go(func() { s.churn(ctx, i) })
	}
	for _, p := range s.paths {
		work.Go(func() { s.traffic(ctx, p) })
	}
	work.Go(func() { s.watch(ctx, name, d) })
	if restarts {
		work.Go(func() { s.restarts(ctx, d) })
	}
	work.Wait()
	s.look(name)
	require.Empty(s.t, s.failures, "phase %s", name)
}

// restarts ends the daemon and starts it again, in order and not, at least four
// times.
func (s *soak) restarts(ctx context.Context, d time.Duration) {
	for i := 0; s.pause(ctx, min(d/5, 10*time.Second)); i++ {
		back := s.away.begin()
		signal, what := syscall.SIGTERM, "daemon stopped"
		if i%2 == 1 {
			signal, what = syscall.SIGKILL, "daemon killed"
		}
		err := s.daemon.Stop(signal, patience)
		if err == nil {
			err = s.startDaemon("", "--udp-timeout", s.aging.String())
		}
		if err == nil {
			err = s.healthy(patience)
		}
		back()
		if err != nil {
			s.failed("restart: %v", err)
			return
		}
		s.count(what)
	}
}

// pause waits, and says whether ctx goes on.
func (s *soak) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// failed notes what should not have happened; the first twenty are enough.
func (s *soak) failed(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failures) < 20 {
		s.failures = append(s.failures, time.Since(s.began).Round(time.Millisecond).String()+" "+fmt.Sprintf(format, args...))
	}
}

func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// watch takes a sample now and then, twelve in a phase.
func (s *soak) watch(ctx context.Context, name string, d time.Duration) {
	for s.pause(ctx, d/12) {
		s.look(name)
	}
}

// look takes a sample.
func (s *soak) look(name string) {
	before := s.away.now()
	got := sample{name: name, at: time.Since(s.began)}
	err := s.ask("/Portolan.Resources", &got.resources)
	if err == nil {
		got.conntrack, err = s.conntrack()
	}
	if err == nil {
		var text string
		text, err = s.engine.Exec("sh", "-c", "nft list ruleset 2>/dev/null | wc -l")
		_, _ = fmt.Sscan(text, &got.ruleLines)
	}
	switch {
	case s.away.since(before):
	case err != nil:
		s.failed("look at the daemon: %v", err)
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.samples = append(s.samples, got)
	}
}

func (s *soak) conntrack() (n int, err error) {
	text, err := s.engine.Exec("sysctl", "-n", "net.netfilter.nf_conntrack_count")
	if err == nil {
		_, err = fmt.Sscan(text, &n)
	}
	return n, err
}

// quiet waits until what nobody uses has aged, and notes what there is still.
func (s *soak) quiet(name string) {
	// Each stream has an entry where the kernel translates it.
	most := 2 * len(s.paths)
	require.NoError(s.t, enginetest.Poll(20*s.aging, func() error {
		n, err := s.conntrack()
		if err == nil && n > most {
			err = fmt.Errorf("%d conntrack entries are left, more than %d", n, most)
		}
		return err
	}))
	s.pause(context.Background(), s.aging) // the proxy's flows
	s.look(name)
	s.rules[name] = s.take()
}

// stop ends the streams, and what they had to say is said.
func (s *soak) stop() {
	s.hangUp()
	s.streams.Wait()
	require.Empty(s.t, s.failures)
}

// compare fails if the daemon has grown since it was warm.
func (s *soak) compare() {
	warm, end := s.sampleOf("warm"), s.sampleOf("end")
	assert.InDelta(s.t, warm.OpenFiles, end.OpenFiles, soakFiles, "open files")
	assert.InDelta(s.t, warm.Goroutines, end.Goroutines, soakGoroutines, "goroutines")
	assert.LessOrEqual(s.t, end.ResidentBytes, warm.ResidentBytes*5/4+soakMemory, "resident memory")
	assert.LessOrEqual(s.t, end.conntrack, 2*len(s.paths), "conntrack entries")
	assert.Empty(s.t, enginetest.Diff(s.rules["warm"], s.rules["end"]))
}

// sampleOf is the last sample of that name.
func (s *soak) sampleOf(name string) (found sample) {
	for _, x := range s.samples {
		if x.name == name {
			found = x
		}
	}
	require.NotZero(s.t, found.Goroutines, "no sample %s", name)
	return found
}

// writeLog writes what has happened, as Markdown.
func (s *soak) writeLog(total time.Duration) {
	var b strings.Builder
	fmt.Fprintf(&b, "Soak of %s, mapper %s, %s in all.\n\n| path | UDP flows | TCP connections | sent and back | excused |\n|---|---|---|---|---|\n",
		total, s.mapper, time.Since(s.began).Round(time.Second))
	var udp int64
	for _, p := range s.paths {
		fmt.Fprintf(&b, "| %s | %d | %d | %d MiB | %d |\n", p.name, p.udp.Load(), p.tcp.Load(), p.bytes.Load()>>20, p.excused.Load())
		udp += p.udp.Load()
	}
	fmt.Fprintf(&b, "\n%d UDP flows in all; no wrong answer. Excused is what was lost by way of the proxy while no daemon was there, and over IPv4 from the neighbour while the engine created a network.\n\n| done | times |\n|---|---|\n", udp)
	for _, name := range slices.Sorted(maps.Keys(s.counts)) {
		fmt.Fprintf(&b, "| %s | %d |\n", name, s.counts[name])
	}
	b.WriteString("\n| after | | RSS | Go heap | open files | goroutines | threads | conntrack entries | lines of rules |\n|---|---|---|---|---|---|---|---|---|\n")
	every := 1 + len(s.samples)/16
	for i, x := range s.samples {
		if i%every != 0 && x.name != "warm" && x.name != "end" {
			continue
		}
		fmt.Fprintf(&b, "| %s | %s | %.1f MiB | %.1f MiB | %d | %d | %d | %d | %d |\n", x.at.Round(time.Second), x.name,
			float64(x.ResidentBytes)/(1<<20), float64(x.HeapBytes)/(1<<20), x.OpenFiles, x.Goroutines, x.Threads, x.conntrack, x.ruleLines)
	}
	s.t.Logf("\n%s", b.String())
	if path := os.Getenv(soakLogVariable); path != "" {
		require.NoError(s.t, os.WriteFile(path, []byte(b.String()), 0o644))
	}
}

// random is any of them.
func random[T any](of []T) T { return of[rand.IntN(len(of))] }
