package shim

import (
	"encoding/json"
	"net/http"
	"net/netip"
)

// list answers GET /containers/json.
func (s *Shim) list(w http.ResponseWriter, r *http.Request) {
	sel, query, ok := parseSelection(r.URL.RawQuery)
	if !ok {
		s.forward(w, r, s.fill(r.Context(), editList))
		return
	}
	// The engine would leave out containers whose ports it does not know, so it
	// is asked for more. That is only right if somebody knows them.
	endpoints, err := s.ask(r.Context())()
	if err != nil || len(endpoints) == 0 {
		s.forward(w, r, nil)
		return
	}
	wider, u := *r, *r.URL
	u.RawQuery = query
	wider.URL = &u
	s.forward(w, &wider, &rewrite{
		status:    http.StatusOK,
		edit:      func(body []byte) []byte { return selectList(body, endpoints, sel) },
		otherwise: func() { s.forward(w, r, nil) },
	})
}

// editList fills in the ports of all containers of a list; nil where there is
// nothing to do.
func editList(body []byte, endpoints map[string]Endpoint) []byte {
	d, root, ok := parse(body)
	if !ok {
		return nil
	}
	return d.apply(d.fillContainers(root, endpoints))
}

// editDiskUsage does the same for GET /system/df, which has its containers in
// one place or, from API 1.52 on, in two.
func editDiskUsage(body []byte, endpoints map[string]Endpoint) []byte {
	d, root, ok := parse(body)
	if !ok {
		return nil
	}
	var edits []edit
	for key, value := range d.members(root) {
		switch name, _ := d.str(key); name {
		case "Containers":
			edits = append(edits, d.fillContainers(value, endpoints)...)
		case "ContainerUsage":
			if items, ok := d.get(value, "Items"); ok {
				edits = append(edits, d.fillContainers(items, endpoints)...)
			}
		}
	}
	return d.apply(edits)
}

// fillContainers are the edits for a list of containers.
func (d doc) fillContainers(list span, endpoints map[string]Endpoint) (edits []edit) {
	var memory []port // of one container after the other
	for c := range d.elements(list) {
		at, ports := d.known(memory[:0], c, endpoints)
		if len(ports) == 0 || at == (span{}) {
			continue
		}
		memory = ports
		if ports, ok := d.appendSummaries(ports, at); ok {
			edits = append(edits, edit{at, summariesText(merge(ports))})
		}
	}
	return edits
}

// selectList is a list of the containers that sel chooses, with their ports, as
// many as it wants; nil for what is no list of containers.
func selectList(body []byte, endpoints map[string]Endpoint, sel *selection) []byte {
	d, root, ok := parse(body)
	if !ok || d[root.from] != '[' {
		return nil
	}
	var kept []byte
	var memory []port
	n := 0
	for c := range d.elements(root) {
		at, ours := d.known(memory[:0], c, endpoints)
		if at == (span{}) {
			return nil
		}
		ports, ok := d.appendSummaries(ours, at)
		if !ok {
			return nil
		}
		memory = ports
		if ports = merge(ports); !sel.matches(ports) {
			continue
		}
		if n++; sel.limit > 0 && n > sel.limit {
			break
		}
		if n > 1 {
			kept = append(kept, ',')
		}
		if len(ours) == 0 {
			kept = append(kept, d.text(c)...)
			continue
		}
		kept = append(kept, d[c.from:at.from]...)
		kept = append(kept, summariesText(ports)...)
		kept = append(kept, d[at.to:c.to]...)
	}
	return d.apply([]edit{{span{root.from + 1, root.to - 1}, kept}})
}

// known appends the ports that the daemon knows of a container in a list, and
// says where that has its Ports, at the zero span where it has none.
func (d doc) known(ports []port, c span, endpoints map[string]Endpoint) (at span, all []port) {
	var settings span
	for key, value := range d.members(c) {
		switch {
		case d.isKey(key, "Ports"):
			at = value
		case d.isKey(key, "NetworkSettings"):
			settings = value
		}
	}
	if settings == (span{}) {
		return at, ports
	}
	for _, ep := range d.endpoints(settings, endpoints) {
		ports = appendPorts(ports, ep)
	}
	return at, ports
}

// appendSummaries appends the ports that a list has of a container. Their texts
// stay as they are.
func (d doc) appendSummaries(ports []port, at span) (all []port, ok bool) {
	for s := range d.elements(at) {
		var p struct {
			IP          string
			PrivatePort uint16
			PublicPort  uint16
			Type        string
		}
		raw := d.text(s)
		if json.Unmarshal(raw, &p) != nil {
			return nil, false
		}
		host, _ := netip.ParseAddr(p.IP) // there is none if it is only exposed
		ports = append(ports, port{
			private: p.PrivatePort, proto: p.Type, host: host, public: p.PublicPort,
			published: p.IP != "" || p.PublicPort != 0, raw: raw,
		})
	}
	return ports, true
}

func summariesText(ports []port) []byte {
	text := append(make([]byte, 0, 80*len(ports)), '[')
	for i, p := range ports {
		if i > 0 {
			text = append(text, ',')
		}
		text = p.appendSummary(text)
	}
	return append(text, ']')
}
