package shim

import (
	"bytes"
	"encoding/json"
	"net/http"
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
	return d.applyAny(d.fillContainers(root, endpoints))
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
	return d.applyAny(edits)
}

// fillContainers are the edits for a list of containers.
func (d doc) fillContainers(list span, endpoints map[string]Endpoint) (edits []edit) {
	for c := range d.elements(list) {
		if e, ok := d.fillContainer(c, endpoints); ok {
			edits = append(edits, e)
		}
	}
	return edits
}

// fillContainer is the edit for one of them; ok is false where none is needed.
func (d doc) fillContainer(c span, endpoints map[string]Endpoint) (e edit, ok bool) {
	ours := d.portsOf(c, endpoints)
	if len(ours) == 0 {
		return edit{}, false
	}
	at, ports, ok := d.summaries(c)
	return edit{at, summariesText(merge(append(ports, ours...)))}, ok
}

// selectList is a list of the containers that sel chooses, with their ports, as
// many as it wants; nil for what is no list of containers.
func selectList(body []byte, endpoints map[string]Endpoint, sel *selection) []byte {
	d, root, ok := parse(body)
	if !ok || d[root.from] != '[' {
		return nil
	}
	var kept []byte
	n := 0
	for c := range d.elements(root) {
		at, ports, ok := d.summaries(c)
		if !ok {
			return nil
		}
		ours := d.portsOf(c, endpoints)
		ports = merge(append(ports, ours...))
		if !sel.matches(ports) {
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

// summaries are the ports that a list has of a container, and where. Their texts
// stay as they are.
func (d doc) summaries(c span) (at span, ports []port, ok bool) {
	if at, ok = d.get(c, "Ports"); !ok {
		return at, nil, false
	}
	for s := range d.elements(at) {
		var p struct {
			IP          string
			PrivatePort uint16
			PublicPort  uint16
			Type        string
		}
		raw := d.text(s)
		if json.Unmarshal(raw, &p) != nil {
			return at, nil, false
		}
		ports = append(ports, port{
			private: p.PrivatePort, proto: p.Type, host: p.IP, public: p.PublicPort,
			published: p.IP != "" || p.PublicPort != 0, raw: raw,
		})
	}
	return at, ports, true
}

func summariesText(ports []port) []byte {
	var text bytes.Buffer
	text.WriteByte('[')
	for i, p := range ports {
		if i > 0 {
			text.WriteByte(',')
		}
		p.writeSummary(&text)
	}
	text.WriteByte(']')
	return text.Bytes()
}
