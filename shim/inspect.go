package shim

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"

	"github.com/portolan/portolan/portmap"
)

// editInspect fills in the ports of an inspected container that is on a network
// of Portolan, and adds NetworkSettings.PortMapping; nil for others.
func editInspect(body []byte, endpoints map[string]Endpoint) []byte {
	d, root, ok := parse(body)
	if !ok {
		return nil
	}
	settings, ok := d.get(root, "NetworkSettings")
	if !ok {
		return nil
	}
	ours := d.endpoints(settings, endpoints)
	if len(ours) == 0 {
		return nil
	}
	at, ports, ok := d.bindings(settings)
	if !ok {
		return nil
	}
	mappings := mappingsOf(ports)
	for _, ep := range ours {
		ports = appendPorts(ports, ep)
		mappings = append(mappings, ep.Published()...)
	}
	text, err := bindingsText(merge(ports))
	if err != nil {
		return nil
	}
	byProto, err := json.Marshal(portmap.PortMapping(mappings))
	if err != nil {
		return nil
	}
	old, ok := d.get(settings, "PortMapping")
	if !ok { // behind Ports
		text = append(append(text, `,"PortMapping":`...), byProto...)
		return d.apply([]edit{{at, text}})
	}
	edits := []edit{{at, text}, {old, byProto}}
	slices.SortFunc(edits, func(a, b edit) int { return cmp.Compare(a.from, b.from) })
	return d.apply(edits)
}

// bindings are the ports in NetworkSettings, and where. Their texts stay as they
// are.
func (d doc) bindings(settings span) (at span, ports []port, ok bool) {
	if at, ok = d.get(settings, "Ports"); !ok {
		return at, nil, false
	}
	for key, list := range d.members(at) {
		name, _ := d.str(key)
		exposed, ok := parseKey(name)
		if !ok {
			return at, nil, false
		}
		n := len(ports)
		for b := range d.elements(list) {
			var binding struct {
				HostIP   string `json:"HostIp"`
				HostPort string
			}
			raw := d.text(b)
			if json.Unmarshal(raw, &binding) != nil {
				return at, nil, false
			}
			p := exposed
			p.published, p.raw = true, raw
			// A network without NAT has neither.
			p.host, _ = netip.ParseAddr(binding.HostIP)
			p.public, _ = parsePort(binding.HostPort)
			ports = append(ports, p)
		}
		if len(ports) == n {
			ports = append(ports, exposed)
		}
	}
	return at, ports, true
}

// mappingsOf are the published ports that have a number.
func mappingsOf(ports []port) (ms []portmap.Mapping) {
	for _, p := range ports {
		if proto, known := protos[p.proto]; known && p.public != 0 {
			ms = append(ms, portmap.Mapping{Proto: proto, HostPort: p.public, HostPortEnd: p.public, Port: p.private})
		}
	}
	return ms
}

// bindingsText is NetworkSettings.Ports, with its keys sorted as the engine
// does: as text.
func bindingsText(ports []port) ([]byte, error) {
	byKey := map[string][]port{}
	for _, p := range ports {
		byKey[p.key()] = append(byKey[p.key()], p)
	}
	text := []byte{'{'}
	for i, key := range slices.Sorted(maps.Keys(byKey)) {
		if i > 0 {
			text = append(text, ',')
		}
		quoted, err := json.Marshal(key)
		if err != nil {
			return nil, err
		}
		text = append(append(text, quoted...), ':')
		if !byKey[key][0].published {
			text = append(text, "null"...)
			continue
		}
		for j, p := range byKey[key] {
			text = p.appendBinding(append(text, "[,"[min(j, 1)]))
		}
		text = append(text, ']')
	}
	return append(text, '}'), nil
}
