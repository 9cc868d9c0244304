package shim

import (
	"bytes"
	"cmp"
	"fmt"
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
	host      string // address; empty for a port that is only exposed
	public    uint16
	raw       []byte // as the engine has written it; nil for ours
}

// protos are Docker's names.
var protos = map[string]portmap.Proto{"tcp": portmap.TCP, "udp": portmap.UDP, "sctp": portmap.SCTP}

// endpointsOf are those endpoints of a container, in a list or inspected, that
// the daemon knows.
func (d doc) endpointsOf(c span, endpoints map[string]Endpoint) (ours []Endpoint) {
	networks, ok := d.get(c, "NetworkSettings", "Networks")
	if !ok {
		return nil
	}
	for _, n := range d.members(networks) {
		if id, ok := d.get(n, "EndpointID"); ok {
			text, _ := d.str(id)
			if ep, known := endpoints[text]; known {
				ours = append(ours, ep)
			}
		}
	}
	return ours
}

// portsOf are the ports that the daemon knows of a container.
func (d doc) portsOf(c span, endpoints map[string]Endpoint) (ports []port) {
	for _, ep := range d.endpointsOf(c, endpoints) {
		ports = append(ports, portsOf(ep)...)
	}
	return ports
}

// portsOf are the ports of an endpoint, unsorted.
func portsOf(ep Endpoint) (ports []port) {
	for _, e := range ep.Exposed {
		ports = append(ports, port{private: e.Port, proto: e.Proto.String()})
	}
	for _, m := range ep.Mappings {
		for _, a := range ep.HostIPs(m) {
			for i := range uint16(m.Len()) {
				ports = append(ports, port{
					private: m.Port + i, proto: m.Proto.String(),
					published: true, host: a.String(), public: m.HostPort + i,
				})
			}
		}
	}
	return ports
}

// merge sorts ports by private port, protocol, address and public port. Of two
// that say the same the first stays, and of a port that is published nothing
// says that it is only exposed: the engine's report of one network does not know
// of another's.
func merge(ports []port) []port {
	slices.SortStableFunc(ports, port.compare)
	merged := ports[:0]
	for i, p := range ports {
		if !p.published && slices.ContainsFunc(ports[i+1:min(i+2, len(ports))], p.samePrivate) {
			continue // the same again, or published: that sorts behind
		}
		if len(merged) > 0 && p.published && merged[len(merged)-1].compare(p) == 0 {
			continue
		}
		merged = append(merged, p)
	}
	return merged
}

func (p port) samePrivate(q port) bool { return p.private == q.private && p.proto == q.proto }

func (p port) compare(q port) int {
	if p.published != q.published && p.samePrivate(q) {
		if q.published {
			return -1
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(p.private, q.private),
		strings.Compare(p.proto, q.proto),
		compareAddr(p.host, q.host),
		cmp.Compare(p.public, q.public),
	)
}

// compareAddr sorts as netip does, IPv4 first, and what is no address before
// that.
func compareAddr(a, b string) int {
	if a == b {
		return 0
	}
	x, _ := netip.ParseAddr(a)
	y, _ := netip.ParseAddr(b)
	return cmp.Or(x.Compare(y), strings.Compare(a, b))
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

// writeSummary writes a port as GET /containers/json has it.
func (p port) writeSummary(b *bytes.Buffer) {
	switch {
	case p.raw != nil:
		b.Write(p.raw)
	case p.published:
		fmt.Fprintf(b, `{"IP":"%s","PrivatePort":%d,"PublicPort":%d,"Type":"%s"}`, p.host, p.private, p.public, p.proto)
	default:
		fmt.Fprintf(b, `{"PrivatePort":%d,"Type":"%s"}`, p.private, p.proto)
	}
}

// writeBinding writes a published port as NetworkSettings.Ports has it.
func (p port) writeBinding(b *bytes.Buffer) {
	if p.raw != nil {
		b.Write(p.raw)
		return
	}
	fmt.Fprintf(b, `{"HostIp":"%s","HostPort":"%d"}`, p.host, p.public)
}
