package shim

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/portolan/portolan/portmap"
)

// port is one port of a container in a report: exposed, or published on one
// host address.
type port struct {
	private   uint16
	proto     string
	published bool
	host      netip.Addr // the zero Addr for a port that is only exposed
	public    uint16
	raw       []byte // as the engine has written it; nil for ours
}

// protos are Docker's names.
var protos = map[string]portmap.Proto{"tcp": portmap.TCP, "udp": portmap.UDP, "sctp": portmap.SCTP}

// endpoints are those of a container's NetworkSettings, in a list or inspected,
// that the daemon knows.
func (d doc) endpoints(settings span, all map[string]Endpoint) (ours []Endpoint) {
	networks, ok := d.get(settings, "Networks")
	if !ok {
		return nil
	}
	for _, n := range d.members(networks) {
		if id, ok := d.get(n, "EndpointID"); ok {
			text, _ := d.str(id)
			if ep, known := all[text]; known {
				ours = append(ours, ep)
			}
		}
	}
	return ours
}

// appendPorts appends the ports of an endpoint, unsorted.
func appendPorts(ports []port, ep Endpoint) []port {
	n := 0
	for _, e := range ep.Exposed {
		n += e.Len()
	}
	for _, m := range ep.Mappings {
		n += 2 * m.Len()
	}
	ports = slices.Grow(ports, n)
	for _, e := range ep.Exposed {
		proto := e.Proto.String()
		for one := range e.All() {
			ports = append(ports, port{private: one.Port, proto: proto})
		}
	}
	for _, m := range ep.Mappings {
		proto := m.Proto.String()
		for _, a := range ep.HostIPs(m) {
			for i := range uint16(m.Len()) {
				ports = append(ports, port{private: m.Port + i, proto: proto, published: true, host: a, public: m.HostPort + i})
			}
		}
	}
	return ports
}

// merge sorts ports, in place, by private port, protocol, address and public
// port. Of two that say the same the engine's stays, and of a port that is
// published nothing says that it is only exposed: the engine's report of one
// network does not know of another's.
func merge(ports []port) []port {
	slices.SortFunc(ports, func(a, b port) int {
		if c := a.compare(b); c != 0 {
			return c
		}
		return cmp.Compare(len(b.raw), len(a.raw))
	})
	merged := ports[:0]
	for _, p := range ports {
		switch n := len(merged); {
		case n == 0 || !merged[n-1].samePrivate(p):
			merged = append(merged, p)
		case merged[n-1].compare(p) == 0:
		case !merged[n-1].published:
			merged[n-1] = p
		default:
			merged = append(merged, p)
		}
	}
	return merged
}

func (p port) samePrivate(q port) bool { return p.private == q.private && p.proto == q.proto }

// compare puts a port that is only exposed before the same one published.
func (p port) compare(q port) int {
	if c := cmp.Compare(p.private, q.private); c != 0 {
		return c
	}
	if c := strings.Compare(p.proto, q.proto); c != 0 {
		return c
	}
	if p.published != q.published {
		if q.published {
			return -1
		}
		return 1
	}
	if c := p.host.Compare(q.host); c != 0 {
		return c
	}
	return cmp.Compare(p.public, q.public)
}

// key is the port in the words of docker inspect, as 53/udp.
func (p port) key() string { return strconv.Itoa(int(p.private)) + "/" + p.proto }

// parseKey is the reverse of key.
func parseKey(key string) (exposed port, ok bool) {
	number, proto, ok := strings.Cut(key, "/")
	n, err := parsePort(number)
	return port{private: n, proto: proto}, ok && err == nil
}

func parsePort(number string) (uint16, error) {
	n, err := strconv.ParseUint(number, 10, 16)
	return uint16(n), err
}

// appendSummary appends a port as GET /containers/json has it.
func (p port) appendSummary(b []byte) []byte {
	if p.raw != nil {
		return append(b, p.raw...)
	}
	b = append(b, '{')
	if p.published {
		b = append(p.host.AppendTo(append(b, `"IP":"`...)), `",`...)
	}
	b = strconv.AppendUint(append(b, `"PrivatePort":`...), uint64(p.private), 10)
	if p.published {
		b = strconv.AppendUint(append(b, `,"PublicPort":`...), uint64(p.public), 10)
	}
	b = append(append(b, `,"Type":"`...), p.proto...)
	return append(b, `"}`...)
}

// appendBinding appends a published port as NetworkSettings.Ports has it.
func (p port) appendBinding(b []byte) []byte {
	if p.raw != nil {
		return append(b, p.raw...)
	}
	b = p.host.AppendTo(append(b, `{"HostIp":"`...))
	b = strconv.AppendUint(append(b, `","HostPort":"`...), uint64(p.public), 10)
	return append(b, `"}`...)
}
