package portmap

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/portolan/portolan/internal/fault"
	"github.com/portolan/portolan/proxy"
)

// PublisherConfig is what a Publisher needs.
type PublisherConfig struct {
	Mapper   Mapper
	Reserver Reserver // nil: NewSockets
	Ranges   Ranges   // nil: a socket for every port
	Hooks    Hooks    // nil: the proxy serves this host's IPv6 clients
	FDStore  FDStore  // nil: sockets end with this process
	// UDPIdle is how long the proxy keeps a UDP flow in which nothing is sent;
	// 0 means package proxy's default.
	UDPIdle time.Duration
	// DialTimeout is how long a container may take to accept a connection of the
	// proxy; 0 means package proxy's default.
	DialTimeout time.Duration
	// MaxConns is how many connections a port may have through the proxy at a
	// time; 0 means a quarter of what all ports together may. MaxFlows is the same
	// for UDP flows; 0 means package proxy's default. All long ranges together
	// have eight times that.
	MaxConns, MaxFlows int
	// SysctlDir is where net.* settings are read; "" means /proc/sys/net.
	SysctlDir string
	// Name describes an endpoint in an error, as "container web"; nil or ""
	// leaves its ID.
	Name func(endpoint string) string
	Log  *slog.Logger // nil is silent
}

// Publisher publishes the ports of endpoints: allocator, mapper, conntrack and
// proxy in the order that loses nothing.
//
// Host ports belong to a sandbox, of which one endpoint at a time publishes:
// the one that is its gateway. When that moves, so do the ports, with their
// numbers.
//
// It is safe for concurrent use; calls for one sandbox wait for one another.
type Publisher struct {
	cfg        PublisherConfig
	allocators map[Proto]*Allocator
	blocks     *blocks     // nil without Ranges
	heirs      *heirs      // nil without an FDStore
	files      proxy.Files // of all its proxies

	mu        sync.Mutex // guards below
	sandboxes map[string]*sandbox
	endpoints map[string]string // to its sandbox, as long as it publishes
}

// sandbox is the host ports of one run of a container.
type sandbox struct {
	id string

	mu      sync.Mutex // guards below; held over the slow steps, which it orders
	ports   []*hostPort
	pub     Publication           // the zero Publication while nothing is published
	steered map[steered]steeredTo // what the hooks do for it
	lost    []Mapping             // of an earlier process; taken meanwhile, tried again
	closed  bool                  // released: whoever waited for mu starts over
}

// NewPublisher returns a Publisher that holds nothing.
func NewPublisher(cfg PublisherConfig) *Publisher {
	cfg.Log = orDiscard(cfg.Log)
	if cfg.Reserver == nil {
		cfg.Reserver = NewSockets(cfg.Log)
	}
	cfg.SysctlDir = cmp.Or(cfg.SysctlDir, "/proc/sys/net")
	cfg.MaxFlows = cmp.Or(cfg.MaxFlows, proxy.DefaultMaxFlows)
	p := &Publisher{
		cfg: cfg, allocators: map[Proto]*Allocator{},
		sandboxes: map[string]*sandbox{}, endpoints: map[string]string{},
	}
	if cfg.Ranges != nil {
		p.blocks = &blocks{
			ranges: cfg.Ranges, cfg: p.proxyConfig().ofBlocks(), log: cfg.Log,
			giveUp: func(m Mapping) { p.heirs.giveUp(m) },
		}
	}
	reserver := cfg.Reserver
	if cfg.FDStore != nil {
		p.heirs = newHeirs(reserver, cfg.FDStore)
		reserver = p.heirs
	}
	for _, proto := range Protos {
		a := NewAllocator(proto, reserver, cfg.SysctlDir)
		a.blocks = p.blocks
		p.allocators[proto] = a
	}
	return p
}

// lock returns the sandbox, made if it is new, with its lock held.
func (p *Publisher) lock(id string) *sandbox {
	for {
		p.mu.Lock()
		s := p.sandboxes[id]
		if s == nil {
			s = &sandbox{id: id}
			p.sandboxes[id] = s
		}
		p.mu.Unlock()
		s.mu.Lock()
		if !s.closed {
			return s
		}
		s.mu.Unlock()
	}
}

// all are the sandboxes of now, without their locks.
func (p *Publisher) all() []*sandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.sandboxes))
}

// unlock gives the lock back, and forgets a sandbox that holds nothing.
func (p *Publisher) unlock(s *sandbox) {
	if len(s.ports) == 0 && len(s.lost) == 0 && len(s.pub.Mappings) == 0 {
		s.closed = true
		p.mu.Lock()
		if p.sandboxes[s.id] == s {
			delete(p.sandboxes, s.id)
		}
		p.mu.Unlock()
	}
	s.mu.Unlock()
}

// Record writes down what an endpoint is about to publish. undo writes what was
// there before.
type Record func(ms []Mapping) (undo func() error, err error)

// Publish makes bs all that t's endpoint publishes, for a sandbox, and returns
// the mappings, sorted.
//
// Ports that the sandbox has already, for this endpoint or one before it, keep
// their numbers. record is called with the mappings when the host ports are
// reserved and before the kernel changes; its error undoes the reservation. An
// error after it calls record's undo. After an error nothing new is held.
//
// The error wraps ErrBadPort, ErrPortInUse, the errno of bind(2), or what the
// Mapper says.
func (p *Publisher) Publish(sandboxID string, t Target, bs []PortBinding, record Record) ([]Mapping, error) {
	s := p.lock(sandboxID)
	defer p.unlock(s)
	wanted, err := p.reserve(s, t, bs)
	if err != nil {
		return nil, p.named(err)
	}
	fault.Point("publish reserved")
	woken, err := p.wake(wanted)
	if err != nil {
		return nil, join(p.named(err), p.release(s, fresh(wanted, s.ports)))
	}
	undo := func() error { return errors.Join(p.park(woken), p.release(s, fresh(wanted, s.ports))) }
	old := s.pub
	pub := Publication{t, mappingsOf(wanted)}
	unrecord, err := record(pub.Mappings)
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	fault.Point("publish recorded")
	if err := p.remap(old, pub); err != nil {
		return nil, errors.Join(err, unrecord(), undo())
	}
	fault.Point("publish mapped")
	unwanted := fresh(s.ports, wanted)
	if len(wanted) == 0 {
		pub.Endpoint = "" // nothing is published, by nobody
	}
	p.claim(old.Endpoint, pub.Endpoint, s.id)
	s.ports, s.pub, s.lost = wanted, pub, nil
	p.flush(old, pub)
	fault.Point("publish flushed")
	p.serve(s)
	fault.Point("publish served")
	if err := p.release(s, unwanted); err != nil {
		p.cfg.Log.Warn("give ports back", "sandbox", s.id, "err", err)
	}
	return slices.Clone(pub.Mappings), nil
}

// remap takes the kernel from what the sandbox's endpoint published before to
// what it publishes now.
func (p *Publisher) remap(old, pub Publication) error {
	moved := old.Endpoint != "" && old.Endpoint != pub.Endpoint
	if moved {
		if err := p.cfg.Mapper.Unmap(old.Endpoint); err != nil {
			err = fmt.Errorf("move ports from endpoint %.12s: %w", old.Endpoint, err)
			return errors.Join(err, p.cfg.Mapper.Map(old))
		}
		fault.Point("publish moved away")
	}
	err := p.cfg.Mapper.Map(pub)
	if err != nil && moved {
		err = errors.Join(err, p.cfg.Mapper.Map(old))
	}
	return err
}

// claim notes which sandbox an endpoint publishes for, and that old does not
// any more; "" is none.
func (p *Publisher) claim(old, now, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.endpoints[old] == id {
		delete(p.endpoints, old)
	}
	if now != "" {
		p.endpoints[now] = id
	}
}

// named gives a conflict between endpoints the holder's name.
func (p *Publisher) named(err error) error {
	c, ok := errors.AsType[*conflictError](err)
	if !ok || c.sandbox == "" || c.own {
		return err
	}
	ep := p.publishing(c.sandbox)
	if ep == "" {
		return err
	}
	c.name = fmt.Sprintf("endpoint %.12s", ep)
	if p.cfg.Name != nil {
		if name := p.cfg.Name(ep); name != "" {
			c.name = name + " (" + c.name + ")"
		}
	}
	return err
}

// publishing is the endpoint that publishes for a sandbox, "" for none.
func (p *Publisher) publishing(id string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ep, of := range p.endpoints {
		if of == id {
			return ep
		}
	}
	return ""
}

// Unpublish removes the rules of an endpoint and stops serving. The numbers of
// its host ports stay with the sandbox, for the endpoint that is its gateway
// next; no socket holds them meanwhile, as that may be another driver's. What
// does not publish is nil: the ports may be another's by now. After an error it
// does not publish either (Mapper.Unmap).
func (p *Publisher) Unpublish(endpoint string) error {
	p.mu.Lock()
	id, known := p.endpoints[endpoint]
	p.mu.Unlock()
	if !known {
		return p.cfg.Mapper.Unmap(endpoint)
	}
	s := p.lock(id)
	defer p.unlock(s)
	return p.unpublish(s, endpoint)
}

func (p *Publisher) unpublish(s *sandbox, endpoint string) error {
	if s.pub.Endpoint != endpoint {
		return nil
	}
	old := s.pub
	err := p.cfg.Mapper.Unmap(endpoint)
	if err != nil { // Check tries it again
		err = fmt.Errorf("unpublish ports of endpoint %.12s: %w", endpoint, err)
	}
	fault.Point("unpublish unmapped")
	p.claim(endpoint, "", s.id)
	s.pub = Publication{}
	s.lost = nil
	p.steer(s)
	if err := p.park(s.ports); err != nil {
		p.cfg.Log.Warn("close sockets", "sandbox", s.id, "err", err)
	}
	fault.Point("unpublish parked")
	p.flush(old)
	fault.Point("unpublish flushed")
	return err
}

// Release gives a sandbox's host ports back, when its last endpoint has left.
// A sandbox that is not known is nil.
func (p *Publisher) Release(sandboxID string) error {
	s := p.lock(sandboxID)
	defer p.unlock(s)
	var err error
	if s.pub.Endpoint != "" {
		err = p.unpublish(s, s.pub.Endpoint)
	}
	ports := s.ports
	s.ports, s.lost = nil, nil
	err = errors.Join(err, p.release(s, ports))
	fault.Point("release released")
	return err
}

// Close stops serving and closes every socket. The rules stay: what the kernel
// carries goes on, and what an FDStore has stays there. The hooks are not told;
// they are closed next.
func (p *Publisher) Close() error {
	err := p.blocks.leave()
	for _, s := range p.all() {
		s.mu.Lock()
		if !s.closed {
			err = errors.Join(err, p.drop(s, s.ports))
			p.claim(s.pub.Endpoint, "", s.id)
			s.ports, s.pub, s.lost = nil, Publication{}, nil
		}
		p.unlock(s)
	}
	return err
}

// flush deletes the UDP conntrack entries that a change has made wrong. It is no
// reason to fail: the ports are published.
func (p *Publisher) flush(old Publication, pubs ...Publication) {
	if err := flushUDP(p.cfg.SysctlDir, old, pubs...); err != nil {
		p.cfg.Log.Warn("delete stale UDP conntrack entries", "err", err)
	}
}
