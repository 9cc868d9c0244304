package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/internal/firewalld"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// defaultStateDir is where the managed plugin has its propagatedMount, which
// survives an upgrade.
const defaultStateDir = "/var/lib/portolan"

// stopWithin is the longest that an orderly stop takes.
const stopWithin = 5 * time.Second

type daemonConfig struct {
	socket     string
	stateDir   string
	mapper     choice
	hooks      choice
	ranges     choice
	udpTimeout time.Duration
	limits     proxyLimits
	ipForward  bool
	sysctlDir  string
}

func newDaemonCommand() *cobra.Command {
	c := daemonConfig{
		mapper: choice{"auto", []string{"auto", "nftables", "iptables"}},
		hooks:  choice{hooksAuto, []string{hooksAuto, hooksOff}},
		ranges: choice{rangesAuto, []string{rangesAuto, rangesSockets}},
	}
	logs := newLogFlags()
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Serve the Docker engine as its network driver",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.udpTimeout <= 0 {
				return usageError{fmt.Errorf("--udp-timeout %s: must be more than 0", c.udpTimeout)}
			}
			if err := c.limits.check(); err != nil {
				return err
			}
			log := logs.logger(cmd.ErrOrStderr())
			return untilSignal(cmd.Context(), log, "stopping; rules stay in place", stopWithin+c.limits.drain, func(ctx context.Context) error { return c.run(ctx, log) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.socket, "socket", defaultSocket, "serve here; the file's name is the driver's name")
	f.StringVar(&c.stateDir, "state-dir", defaultStateDir, "keep networks and endpoints here")
	f.Var(&c.mapper, "mapper", "who writes the rules")
	f.Var(&c.hooks, "hooks", "BPF hooks for this host's own IPv6 clients: where they can be attached, or never")
	f.Var(&c.ranges, "ranges", "who holds long ranges of host ports: BPF programs where they can be attached, or a socket for each port")
	f.DurationVar(&c.udpTimeout, "udp-timeout", 90*time.Second, "forget a UDP flow through the proxy after so long without a datagram")
	c.limits.add(f)
	f.BoolVar(&c.ipForward, "ip-forward", true, "turn forwarding on where it is off")
	f.StringVar(&c.sysctlDir, "sysctl-dir", findSysctlDir(), "the host's /proc/sys/net")
	logs.add(f)
	return cmd
}

// findSysctlDir is where sysctls can be written: a managed plugin's own
// /proc/sys is read-only, so config.json mounts the host's beside it.
func findSysctlDir() string {
	const mounted = "/host/proc/sys/net"
	if _, err := os.Stat(mounted + "/ipv4"); err == nil {
		return mounted
	}
	return "/proc/sys/net"
}

// untilSignal runs serve until it ends by itself or SIGTERM or SIGINT cancels
// its context, which it logs as stopping. A second signal, or within, ends the wait for it.
func untilSignal(ctx context.Context, log *slog.Logger, stopping string, within time.Duration, serve func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)

	done := make(chan error, 1)
	go report(ctx, serve, done)
	select {
	case err := <-done:
		return err
	case s := <-signals:
		log.Info(stopping, "signal", s)
	case <-ctx.Done():
	}
	cancel()
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case s := <-signals:
		return fmt.Errorf("stopped in disorder by a second signal: %s", s)
	case <-late.C:
		return fmt.Errorf("still busy %s after the signal to stop", within)
	}
}

// report ends when serve does.
func report(ctx context.Context, serve func(context.Context) error, done chan<- error) {
	done <- serve(ctx)
}

// gcPercent keeps the peak of publishing a thousand ports well below 40 MiB, at
// no cost that could be measured (docs/benchmarks.md). GOGC still has its say.
const gcPercent = 50

// run is the daemon, from its first check to its orderly end, which leaves
// rules, bridges and sysctls in place. The order matters. The lock comes first,
// since two daemons would undo each other's rules. The socket listens before
// state is restored, since an engine gives up on a plugin that does not; what
// the engine asks meanwhile waits in the driver.
func (c *daemonConfig) run(ctx context.Context, log *slog.Logger) (err error) {
	if err := needNetAdmin(); err != nil {
		return err
	}
	// Before files are opened: what is passed has the lowest numbers.
	service, err := openUnit(log)
	if err != nil {
		return err
	}
	defer closing(&err, service.Close)
	if err := confine(toLoad); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	lock, err := lockNamespace(c.socket, c.stateDir)
	if err != nil {
		return err
	}
	defer closing(&err, lock.Close)
	if lock.taken != "" {
		log.Warn("cannot make sure that there is no other portolan daemon: "+lock.taken, "do", "stop that process")
	}

	st, err := store.Open(c.stateDir, log)
	if err != nil {
		return err
	}
	defer closing(&err, st.Close)

	ln, err := service.listen(c.socket)
	if err != nil {
		return err
	}
	defer ln.Close() // the server has closed it, unless it never came so far

	zones := firewalld.Open(firewalld.Config{Log: log, Present: portmap.FirewalldRules})
	defer closing(&err, zones.Close)

	mapper, kind, reason, err := portmap.OpenMapper(c.mapper.value, portmap.MapperConfig{Log: log, Settle: zones.Settle})
	if err != nil {
		return fmt.Errorf("open mapper %s: %w", c.mapper.value, err)
	}
	defer closing(&err, mapper.Close)

	steering := openHooks(c.hooks.value, log)
	defer closing(&err, steering.Close)

	ranges, err := openRanges(c.ranges.value, c.sysctlDir, st, service.forRanges(), log)
	if err != nil {
		return err
	}
	defer closing(&err, ranges.Close)

	if err := confine(kept); err != nil {
		return err
	}
	publisher := portmap.NewPublisher(portmap.PublisherConfig{
		Mapper:  mapper,
		Ranges:  ranges.forPublisher(),
		Hooks:   steering.forPublisher(),
		FDStore: service.forPublisher(),
		UDPIdle: c.udpTimeout,

		DialTimeout: c.limits.dialTimeout,
		MaxConns:    c.limits.maxConns,
		MaxFlows:    c.limits.maxFlows,

		SysctlDir: c.sysctlDir,
		Name:      func(endpoint string) string { return describe(st, endpoint) },
		Log:       log,
	})
	defer closing(&err, publisher.Close)
	defer ranges.leave()
	defer func() {
		if err == nil {
			c.limits.drainFrom(publisher, log)
		}
	}()

	d := driver.New(driver.Config{
		Zones:     zones,
		Store:     st,
		Mapper:    mapper,
		Publisher: publisher,
		SysctlDir: c.sysctlDir,
		IPForward: c.ipForward,
		Log:       log,
		Status:    publisher.Status,
		Version:   version,
		Info:      c.info(kind, reason, steering, ranges),
	})
	log.Info("portolan daemon", "version", version, "pid", os.Getpid(), "socket", c.socket, "state", c.stateDir,
		"mapper", kind, "why", reason,
		"hooks", steering.state(), "why-hooks", steering.reason,
		"ranges", ranges.state(), "why-ranges", ranges.reason, "files", openFileLimit())
	watched, err := watchdogEvery()
	if err != nil {
		return err
	}
	keep := openKeeper(d, mapper, log)
	defer closing(&err, keep.Close)
	live := &serving{
		socket: c.socket, kind: kind, watched: watched, log: log,
		st: st, publisher: publisher, driver: d, keep: keep, zones: zones,
	}
	return live.run(ctx, ln)
}

// describe names an endpoint by its container, where somebody has told which it
// is.
func describe(st *store.Store, endpoint string) string {
	ep, ok := st.Endpoint(endpoint)
	if !ok || ep.Owner == nil || ep.Owner.ContainerName == "" {
		return ""
	}
	return "container " + ep.Owner.ContainerName
}

// closing runs one step of the end and keeps the first error.
func closing(err *error, step func() error) { *err = errors.Join(*err, step()) }

// info is what `portolan version` shows beside the version.
func (c *daemonConfig) info(kind, reason string, steering openedHooks, ranges openedRanges) map[string]string {
	return map[string]string{
		"pid":    strconv.Itoa(os.Getpid()),
		"socket": c.socket,
		"state":  c.stateDir,
		"mapper": kind,
		"reason": reason,

		"hooks":       steering.state(),
		"hooksReason": steering.reason,

		"ranges":       ranges.state(),
		"rangesReason": ranges.reason,
	}
}
