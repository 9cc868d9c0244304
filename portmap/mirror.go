package portmap

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// mirror is what a Mapper has set: the truth about which port is whose, since a
// kernel that deletes by key does not ask.
type mirror struct {
	nets map[string]Network
	pubs map[string]Publication // by endpoint
	held portIndex              // owners are endpoints
}

func newMirror() mirror {
	return mirror{map[string]Network{}, map[string]Publication{}, portIndex{}}
}

func (m *mirror) clone() mirror {
	held := make(portIndex, len(m.held))
	for k, spans := range m.held {
		held[k] = slices.Clone(spans)
	}
	return mirror{maps.Clone(m.nets), maps.Clone(m.pubs), held}
}

// publish adds what an endpoint publishes; what it published before has left.
// The error wraps ErrPortInUse where another endpoint, or another mapping of
// this one, has one of the ports; nothing has been added then.
func (m *mirror) publish(p Publication) error {
	if _, known := m.nets[p.Network]; !known {
		return fmt.Errorf("map ports of endpoint %.12s: no such network: %.12s", p.Endpoint, p.Network)
	}
	if len(p.Mappings) == 0 {
		return nil
	}
	for _, mp := range p.Mappings {
		if err := mp.valid(); err != nil {
			return fmt.Errorf("map %s of endpoint %.12s: %w", mp, p.Endpoint, err)
		}
	}
	held := p.Held()
	for i, mp := range held {
		if s, addr, taken := m.held.conflict(mp, ""); taken {
			for _, entered := range held[:i] {
				m.held.remove(entered, p.Endpoint)
			}
			if s.owner == p.Endpoint {
				return fmt.Errorf("map %s of endpoint %.12s: %w: by another of its mappings", mp, p.Endpoint, ErrPortInUse)
			}
			return fmt.Errorf("map %s of endpoint %.12s: %w: %s port %d on %s is endpoint %.12s's",
				mp, p.Endpoint, ErrPortInUse, mp.Proto, s.first, addr, s.owner)
		}
		m.held.add(mp, p.Endpoint)
	}
	p.Mappings = slices.Clone(p.Mappings)
	m.pubs[p.Endpoint] = p
	return nil
}

// leave removes all that an endpoint publishes.
func (m *mirror) leave(endpoint string) {
	p := m.pubs[endpoint]
	delete(m.pubs, endpoint)
	for _, mp := range p.Held() {
		m.held.remove(mp, endpoint)
	}
}

func (m Mapping) valid() error {
	switch {
	case !m.Proto.Valid():
		return errors.New("unknown protocol")
	case m.HostPort == 0 || m.HostPortEnd < m.HostPort:
		return errors.New("host ports are not a range of 1 to 65535")
	case m.Port == 0 || int(m.Port)+m.Len() > 65536:
		return errors.New("container ports are not a range of 1 to 65535")
	}
	return nil
}
