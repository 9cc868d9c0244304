package portmap

import (
	"errors"
	"fmt"
	"slices"

	"github.com/portolan/portolan/internal/fault"
)

// Run is what one endpoint of a sandbox published when an earlier process last
// wrote it down, or what it keeps for the sandbox's next gateway.
type Run struct {
	Sandbox string
	Publication
	Parked []Mapping
}

// Restore takes up what an earlier process left: it reserves the host ports of
// runs again, has the Mapper replace all rules by those of nets and runs, and
// serves. Flows that the kernel carries go on.
//
// gone is what was published by endpoints that have ended since: conntrack entries
// of their UDP flows would lead clients that never pause to whoever has their
// addresses next.
//
// A port that somebody else took meanwhile loses only itself: it is logged, and
// Retry tries it again. The error is the Mapper's.
func (p *Publisher) Restore(nets []Network, runs []Run, gone []Mapping) error {
	var pubs []Publication
	for _, r := range runs {
		if len(r.Mappings) == 0 {
			continue
		}
		s := p.lock(r.Sandbox)
		if s.pub.Endpoint == "" {
			p.regain(s, r.Publication, r.Mappings)
			if len(s.pub.Mappings) > 0 {
				pubs = append(pubs, s.pub)
			}
		} else { // of a record that an earlier version could leave
			p.cfg.Log.Warn("two endpoints of a sandbox are on record with its ports", "sandbox", s.id,
				"published-by", s.pub.Endpoint, "not-by", r.Endpoint)
		}
		p.unlock(s)
	}
	for _, r := range runs {
		s := p.lock(r.Sandbox)
		p.keepParked(s, r.Target, r.Parked)
		p.unlock(s)
	}
	fault.Point("restore reserved")
	if err := p.cfg.Mapper.Load(nets, pubs); err != nil {
		return err
	}
	fault.Point("restore loaded")
	p.flush(Publication{Mappings: gone}, pubs...)
	fault.Point("restore flushed")
	p.blocks.wait()
	for _, r := range runs {
		s := p.lock(r.Sandbox)
		if s.pub.Endpoint != "" {
			p.serve(s)
		}
		p.unlock(s)
	}
	p.heirs.settle()
	p.blocks.settle()
	return nil
}

// regain reserves what it can of ms and enters it in s.
func (p *Publisher) regain(s *sandbox, pub Publication, ms []Mapping) {
	for _, m := range ms {
		ports, lost := p.reserveParts(s, pub.Target, m, func(m Mapping, err error) {
			p.cfg.Log.Warn("a published port was taken meanwhile; it is tried again",
				"port", m, "endpoint", pub.Endpoint, "err", p.named(err))
		})
		s.ports = append(s.ports, ports...)
		s.lost = append(s.lost, lost...)
	}
	s.lost = joinMappings(s.lost)
	s.pub = Publication{pub.Target, mappingsOf(s.ports)}
	p.claim("", pub.Endpoint, s.id)
}

// keepParked keeps other containers off the numbers that s had, as Unpublish
// does, unless it publishes. Not so those of long ranges, which are always asked
// for by number.
func (p *Publisher) keepParked(s *sandbox, t Target, ms []Mapping) {
	if s.pub.Endpoint != "" {
		return
	}
	for _, m := range ms {
		held := Publication{t, []Mapping{m}}.Held()
		if len(held) == 0 || p.blocks.wants(m) {
			continue
		}
		ports := asked(p.allocators[m.Proto].park(held[0], s.id), m.HostIP)
		for _, port := range ports {
			port.parked = true
		}
		s.ports = append(s.ports, ports...)
	}
}

// reserveParts reserves m in the largest parts that are free, and returns the
// ports that are not.
func (p *Publisher) reserveParts(s *sandbox, t Target, m Mapping, refused func(Mapping, error)) (ports []*hostPort, lost []Mapping) {
	ports, err := p.reserveRange(s, t, m)
	switch {
	case err == nil:
		return ports, nil
	case m.Len() == 1:
		refused(m, err)
		return nil, []Mapping{m}
	}
	middle := int(m.HostPort) + m.Len()/2
	ports, lost = p.reserveParts(s, t, m.part(int(m.HostPort), middle-1), refused)
	more, rest := p.reserveParts(s, t, m.part(middle, int(m.HostPortEnd)), refused)
	return append(ports, more...), append(lost, rest...)
}

// Retry tries to get back the ports that Restore could not. It is for a task
// that calls it every few seconds, and does nothing where nothing is lost.
func (p *Publisher) Retry() error {
	var err error
	for _, s := range p.all() {
		s.mu.Lock()
		if !s.closed && len(s.lost) > 0 {
			err = errors.Join(err, p.retry(s))
		}
		s.mu.Unlock()
	}
	return err
}

func (p *Publisher) retry(s *sandbox) error {
	old := s.pub
	var made []*hostPort
	var lost []Mapping
	for _, m := range s.lost {
		ports, still := p.reserveParts(s, old.Target, m, func(Mapping, error) {})
		made, lost = append(made, ports...), append(lost, still...)
	}
	if len(made) == 0 {
		return nil
	}
	now := slices.Concat(s.ports, made)
	pub := Publication{old.Target, mappingsOf(now)}
	if err := p.cfg.Mapper.Map(pub); err != nil {
		return errors.Join(fmt.Errorf("publish ports of endpoint %.12s again: %w", old.Endpoint, err), p.release(s, made))
	}
	p.cfg.Log.Info("ports that had been taken are published again", "endpoint", old.Endpoint, "ports", mappingsOf(made))
	s.ports, s.pub, s.lost = now, pub, joinMappings(lost)
	p.flush(old, pub)
	p.serve(s)
	return nil
}

// Lost are the mappings of an endpoint that are waiting for Retry.
func (p *Publisher) Lost(endpoint string) []Mapping {
	p.mu.Lock()
	s := p.sandboxes[p.endpoints[endpoint]]
	p.mu.Unlock()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pub.Endpoint != endpoint {
		return nil
	}
	return slices.Clone(s.lost)
}
