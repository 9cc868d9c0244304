package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/pflag"

	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/proxy"
)

// maxDrain is more than anybody waits for a service to stop.
const maxDrain = time.Hour

// proxyLimits are the flags of what goes through the proxy.
type proxyLimits struct {
	dialTimeout time.Duration
	maxConns    int // 0: a quarter of what all ports together may have
	maxFlows    int
	drain       time.Duration
}

func (l *proxyLimits) add(f *pflag.FlagSet) {
	f.DurationVar(&l.dialTimeout, "dial-timeout", proxy.DefaultDialTimeout, "reset a client of the proxy whose container does not accept within that time")
	f.IntVar(&l.maxConns, "max-connections", 0, "connections that a port may have through the proxy at a time; 0 is a quarter of what all together may")
	f.IntVar(&l.maxFlows, "max-flows", proxy.DefaultMaxFlows, "UDP flows that a port may have through the proxy at a time")
	f.DurationVar(&l.drain, "drain", 0, "let connections through the proxy go on for so long after the signal to stop")
}

func (l *proxyLimits) check() error {
	switch {
	case l.dialTimeout <= 0:
		return usageError{fmt.Errorf("--dial-timeout %s: must be more than 0", l.dialTimeout)}
	case l.maxConns < 0:
		return usageError{fmt.Errorf("--max-connections %d: must not be less than 0", l.maxConns)}
	case l.maxFlows < 1:
		return usageError{fmt.Errorf("--max-flows %d: must be more than 0", l.maxFlows)}
	case l.drain < 0 || l.drain > maxDrain:
		return usageError{fmt.Errorf("--drain %s: must be 0 to %s", l.drain, maxDrain)}
	}
	return nil
}

// drainFrom waits for the connections through the proxy, for as long as they have.
func (l *proxyLimits) drainFrom(p *portmap.Publisher, log *slog.Logger) {
	if l.drain == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.drain)
	defer cancel()
	p.Drain(ctx)
	if ctx.Err() != nil {
		log.Warn("connections through the proxy are reset: they have not ended in time", "drain", l.drain)
	}
}
