package portmap

import (
	"errors"
	"fmt"
	"slices"
)

// Run is what one sandbox published when an earlier process last wrote it down.
type Run struct {
	Sandbox string
	Publication
}

// Restore takes up what an earlier process left: it reserves the host ports of
// runs again, has the Mapper replace all rules by those of nets and runs, and
// serves. Flows that the kernel carries go on.
//
// A port that somebody else took meanwhile loses only itself: it is logged, and
// Retry tries it again. The error is the Mapper's.
func (p *Publisher) Restore(nets []Network, runs []Run) error {
	var pubs []Publication
	for _, r := range runs {
		if len(r.Mappings) == 0 {
			continue
		}
		s := p.lock(r.Sandbox)
		p.regain(s, r.Publication, r.Mappings)
		if len(s.pub.Mappings) > 0 {
			pubs = append(pubs, s.pub)
		}
		p.unlock(s)
	}
	if err := p.cfg.Mapper.Load(nets, pubs); err != nil {
		return err
	}
	p.flush(Publication{}, pubs...)
	for _, r := range runs {
		s := p.lock(r.Sandbox)
		p.serve(s)
		p.unlock(s)
	}
	return nil
}

// regain reserves what it can of ms, the largest pieces first whole, then port
// by port, and enters it in s.
func (p *Publisher) regain(s *sandbox, pub Publication, ms []Mapping) {
	var lost []Mapping
	for _, m := range ms {
		ports, err := p.reserveRange(s, pub.Target, m)
		if err == nil {
			s.ports = append(s.ports, ports...)
			continue
		}
		for i := range m.Len() {
			ports, err := p.reserveRange(s, pub.Target, m.at(i))
			if err != nil {
				p.cfg.Log.Warn("a published port was taken meanwhile; it is tried again",
					"port", m.at(i), "endpoint", pub.Endpoint, "err", p.named(err))
				lost = append(lost, m.at(i))
				continue
			}
			s.ports = append(s.ports, ports...)
		}
	}
	s.lost = joinMappings(lost)
	s.pub = Publication{pub.Target, mappingsOf(s.ports)}
	p.claim("", pub.Endpoint, s.id)
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
		for i := range m.Len() {
			ports, err := p.reserveRange(s, old.Target, m.at(i))
			if err != nil {
				lost = append(lost, m.at(i))
				continue
			}
			made = append(made, ports...)
		}
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
