package shim

import (
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strconv"
)

// selection are the parts of a GET /containers/json that depend on ports. A
// container is chosen if any of its ports is in any of the ranges.
//
// The rules are moby's (daemon/list.go of 20.10 and 29); what these two take
// differently is not parsed here.
type selection struct {
	publish, expose []portRange
	limit           int // 0: no limit
}

// portRange is a closed range of ports of a protocol.
type portRange struct {
	proto       string
	first, last uint16
}

// portFilter is the form of a value, as 80, 53/udp or 8000-8010/tcp.
var portFilter = regexp.MustCompile(`^([0-9]+)(?:-([0-9]+))?(?:/([a-z]*))?$`)

func parsePortRange(value string) (r portRange, ok bool) {
	m := portFilter.FindStringSubmatch(value)
	if m == nil {
		return r, false
	}
	if r.proto = m[3]; r.proto == "" {
		r.proto = "tcp"
	}
	first, err := parsePort(m[1])
	if err != nil {
		return r, false
	}
	r.first, r.last = first, first
	if m[2] != "" {
		if r.last, err = parsePort(m[2]); err != nil {
			return r, false
		}
	}
	return r, r.first <= r.last
}

func (r portRange) has(proto string, number uint16) bool {
	return r.proto == proto && r.first <= number && number <= r.last
}

// matches compares public ports with publish and private ones with expose. A
// port that is only exposed counts as public port 0.
func (s *selection) matches(ports []port) bool {
	return slices.ContainsFunc(ports, func(p port) bool {
		return slices.ContainsFunc(s.publish, func(r portRange) bool { return r.has(p.proto, p.public) }) ||
			slices.ContainsFunc(s.expose, func(r portRange) bool { return r.has(p.proto, p.private) })
	})
}

// parseSelection takes the filters publish and expose and the limit out of a
// query; what is left finds every container that may be chosen. ok is false
// where there is no such filter, or the engine alone can say what is wrong.
func parseSelection(query string) (sel *selection, wider string, ok bool) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, "", false
	}
	filters, ok := parseFilters(values.Get("filters"))
	if !ok {
		return nil, "", false
	}
	sel = &selection{}
	for name, ranges := range map[string]*[]portRange{"publish": &sel.publish, "expose": &sel.expose} {
		for _, value := range filters.values(name) {
			r, ok := parsePortRange(value)
			if !ok {
				return nil, "", false
			}
			*ranges = append(*ranges, r)
		}
		delete(filters, name)
	}
	if len(sel.publish)+len(sel.expose) == 0 {
		return nil, "", false
	}
	rest, err := json.Marshal(filters)
	if err != nil {
		return nil, "", false
	}
	values.Set("filters", string(rest))
	if limit := values.Get("limit"); limit != "" {
		if sel.limit, err = strconv.Atoi(limit); err != nil {
			return nil, "", false
		}
		values.Del("limit")
		if sel.limit > 0 { // which includes what does not run
			values.Set("all", "1")
		}
	}
	return sel, values.Encode(), true
}

// filters are the values of each filter as they were written.
type filters map[string]json.RawMessage

// parseFilters takes both forms that the engine does: {"publish":{"80":true}},
// in which it does not look at the true, and {"publish":["80"]}.
func parseFilters(text string) (f filters, ok bool) {
	if json.Unmarshal([]byte(text), &f) != nil {
		return nil, false
	}
	var sets map[string]map[string]bool
	var lists map[string][]string
	ok = json.Unmarshal([]byte(text), &sets) == nil || json.Unmarshal([]byte(text), &lists) == nil
	return f, ok
}

// values are those of one filter.
func (f filters) values(name string) []string {
	var list []string
	if json.Unmarshal(f[name], &list) == nil {
		return list
	}
	var set map[string]bool
	if json.Unmarshal(f[name], &set) != nil {
		return nil
	}
	for value := range set {
		list = append(list, value)
	}
	return list
}
