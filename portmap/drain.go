package portmap

import (
	"context"
	"time"
)

// drainPoll is how often Drain looks whether connections are left.
const drainPoll = 20 * time.Millisecond

// drainer is a proxy of connections, which end by themselves.
type drainer interface {
	Drain()
	Connections() int
}

// Drain refuses new connections to what the proxy serves, and returns when those
// under way have ended, or ctx. It is for the end of the process, before Close,
// which resets what is left. UDP is served until then.
func (p *Publisher) Drain(ctx context.Context) {
	var all []drainer
	for _, s := range p.all() {
		s.mu.Lock()
		for _, port := range s.ports {
			if d, ok := port.proxy.(drainer); ok {
				all = append(all, d)
			}
		}
		s.mu.Unlock()
	}
	if p.blocks != nil {
		all = append(all, p.blocks.drainers()...)
	}
	for _, d := range all {
		d.Drain()
	}
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for busy(all) && ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func busy(all []drainer) bool {
	for _, d := range all {
		if d.Connections() > 0 {
			return true
		}
	}
	return false
}

func (bs *blocks) drainers() (ds []drainer) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	for _, p := range bs.proxies {
		if d, ok := p.(drainer); ok {
			ds = append(ds, d)
		}
	}
	return ds
}
