package proxy

import (
	"errors"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Sample is one number of a proxy. Names and reasons are those of a Prometheus
// metric and of its label "reason". What ends in _total only grows; the others
// are of now.
type Sample struct {
	Name   string `json:"name"`
	Reason string `json:"reason,omitempty"`
	Value  uint64 `json:"value"`
}

// counter is a number of Counters.
type counter int

const (
	connections counter = iota
	connectionsTotal
	refusedLimit
	refusedFiles
	refusedNoBackend
	refusedTimeout
	refusedBackend
	flows
	flowsTotal
	evictedLimit
	evictedFiles
	flowsRefused
	datagramsDropped
	counters // how many there are
)

var samples = [counters]Sample{
	connections:      {Name: "portolan_proxy_connections"},
	connectionsTotal: {Name: "portolan_proxy_connections_total"},
	refusedLimit:     {Name: "portolan_proxy_connections_refused_total", Reason: "limit"},           // MaxConns
	refusedFiles:     {Name: "portolan_proxy_connections_refused_total", Reason: "files"},           // no open file left
	refusedNoBackend: {Name: "portolan_proxy_connections_refused_total", Reason: "no backend"},      // nobody is served
	refusedTimeout:   {Name: "portolan_proxy_connections_refused_total", Reason: "dial timeout"},    // the container does not answer
	refusedBackend:   {Name: "portolan_proxy_connections_refused_total", Reason: "backend refused"}, // or cannot be reached
	flows:            {Name: "portolan_proxy_flows"},
	flowsTotal:       {Name: "portolan_proxy_flows_total"},
	evictedLimit:     {Name: "portolan_proxy_flows_evicted_total", Reason: "limit"}, // MaxFlows
	evictedFiles:     {Name: "portolan_proxy_flows_evicted_total", Reason: "files"},
	flowsRefused:     {Name: "portolan_proxy_flows_refused_total"},     // no file, no memory, or no way to the container
	datagramsDropped: {Name: "portolan_proxy_datagrams_dropped_total"}, // by the proxy, which cannot send on
}

// Counters are the numbers of a published port, or of a range. The zero value is
// ready; nil counts nothing. It is safe for concurrent use.
type Counters struct {
	values [counters]atomic.Int64
}

func (c *Counters) add(what counter, n int64) {
	if c != nil {
		c.values[what].Add(n)
	}
}

// Samples are all numbers, zeros included.
func (c *Counters) Samples() []Sample {
	all := samples
	if c != nil {
		for i := range all {
			all[i].Value = uint64(max(c.values[i].Load(), 0))
		}
	}
	return all[:]
}

// Counted is a Proxy that says what it has done.
type Counted interface {
	// Samples are the proxy's numbers, and what the kernel has dropped because
	// the socket's queue was full: datagrams, SYNs and connections. They are
	// empty after Close.
	Samples() []Sample
}

var (
	_ Counted = (*TCP)(nil)
	_ Counted = (*UDP)(nil)
)

// CountersFunc is the Counters of a local address, as BackendFunc is told it, for
// a proxy that serves several ports. nil counts nothing. It is called as
// BackendFunc is.
type CountersFunc func(local netip.AddrPort) *Counters

// tally finds the counters of a local address.
type tally struct {
	of  CountersFunc
	own *Counters // without of; made for the first event, since most ports never have one
}

func (t *tally) at(local netip.AddrPort) *Counters {
	if t.of != nil {
		return t.of(local)
	}
	if t.own == nil {
		t.own = new(Counters)
	}
	return t.own
}

// samplesOf are a proxy's own numbers and its socket's.
func (f *frontend) samplesOf(t *tally, drops Sample) []Sample {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return nil
	}
	drops.Value = uint64(queueDrops(f.fd))
	return append(t.own.Samples(), drops)
}

// refusal is what a refused connection is counted as.
func refusal(err error) counter {
	switch {
	case errors.Is(err, errNoBackend):
		return refusedNoBackend
	case errors.Is(err, unix.ETIMEDOUT):
		return refusedTimeout
	}
	return refusedBackend
}
