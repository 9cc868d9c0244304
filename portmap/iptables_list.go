package portmap

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// List implements Mapper. A mapping that is there for all addresses of both
// families has no host address, whether it was given as one mapping or two.
func (m *IPTables) List() ([]Publication, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pubs := map[string]*Publication{}
	for _, t := range m.tools {
		r, err := t.read()
		if err != nil {
			return nil, fmt.Errorf("list published ports: %w", err)
		}
		for c, rules := range r.ours() {
			if c.table != "nat" || !strings.HasPrefix(c.name, iptPrefix+"DNAT-") {
				continue
			}
			for _, rule := range rules {
				if err := iptParseInto(pubs, t.is4, rule); err != nil {
					return nil, fmt.Errorf("list published ports: chain %s: rule %q: %w", c.name, rule, err)
				}
			}
		}
	}
	list := make([]Publication, 0, len(pubs))
	for _, p := range pubs {
		p.Mappings = iptMergeFamilies(p.Mappings)
		list = append(list, *p)
	}
	return list, nil
}

// iptParseInto adds what one rule of a chain DNAT-… says to the publication of
// the endpoint in its comment.
func iptParseInto(pubs map[string]*Publication, is4 bool, rule string) error {
	m := Mapping{HostIP: wildcardOf(netip.IPv6Unspecified())}
	if is4 {
		m.HostIP = netip.IPv4Unspecified()
	}
	var endpoint, to string
	words := strings.Fields(rule)
	for i := 0; i+1 < len(words); i++ {
		var err error
		switch arg := words[i+1]; words[i] {
		case "-d":
			var p netip.Prefix
			p, err = netip.ParsePrefix(arg)
			m.HostIP = p.Addr()
		case "-p":
			at := slices.IndexFunc(Protos[:], func(p Proto) bool { return p.String() == arg })
			if at < 0 {
				return fmt.Errorf("unknown protocol %s", arg)
			}
			m.Proto = Protos[at]
		case "--dport":
			m.HostPort, m.HostPortEnd, err = iptParseRange(arg, ":")
		case "--comment":
			endpoint = strings.Trim(arg, `"`)
		case "--to-destination":
			to = arg
		default:
			continue
		}
		if err != nil {
			return err
		}
		i++
	}
	addr, port, err := iptParseTo(to)
	if err != nil {
		return err
	}
	if m.Port = port; port == 0 {
		m.Port = m.HostPort
	}
	p := pubs[endpoint]
	if p == nil {
		p = &Publication{Target: Target{Endpoint: endpoint}}
		pubs[endpoint] = p
	}
	if is4 {
		p.IPv4 = addr
	} else {
		p.IPv6 = addr
	}
	p.Mappings = append(p.Mappings, m)
	return nil
}

func iptParseRange(s, sep string) (first, last uint16, err error) {
	a, b, ranged := strings.Cut(s, sep)
	if !ranged {
		b = a
	}
	x, err := strconv.ParseUint(a, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	y, err := strconv.ParseUint(b, 10, 16)
	return uint16(x), uint16(y), err
}

// iptParseTo parses ADDR, ADDR:PORT or ADDR:FIRST-LAST/BASE; port 0 means that
// it is not changed.
func iptParseTo(s string) (addr netip.Addr, port uint16, err error) {
	if addr, err = netip.ParseAddr(s); err == nil {
		return addr, 0, nil
	}
	s, _, _ = strings.Cut(s, "/")
	at := strings.LastIndexByte(s, ':')
	if at < 0 {
		return addr, 0, err
	}
	if addr, err = netip.ParseAddr(strings.Trim(s[:at], "[]")); err != nil {
		return addr, 0, err
	}
	port, _, err = iptParseRange(s[at+1:], "-")
	return addr, port, err
}

// iptMergeFamilies makes one mapping of two that differ only in being the
// wildcard of one family and of the other.
func iptMergeFamilies(ms []Mapping) []Mapping {
	slices.SortFunc(ms, func(a, b Mapping) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.HostPort, b.HostPort),
			cmp.Compare(a.HostPortEnd, b.HostPortEnd), cmp.Compare(a.Port, b.Port), a.HostIP.Compare(b.HostIP))
	})
	var out []Mapping
	for _, m := range ms {
		if n := len(out); n > 0 && m.HostIP == netip.IPv6Unspecified() {
			four := m
			four.HostIP = netip.IPv4Unspecified()
			if i := slices.Index(out[max(0, n-1):], four); i >= 0 {
				out[n-1].HostIP = netip.Addr{}
				continue
			}
		}
		out = append(out, m)
	}
	return out
}
