package portmap

import (
	"fmt"
	"iter"
	"net/netip"
	"strconv"
)

// ExposedPort is a port that a container offers, published or not, or a closed
// range of them.
type ExposedPort struct {
	Proto   Proto  `json:"proto"`
	Port    uint16 `json:"port"`
	PortEnd uint16 `json:"portEnd,omitempty"` // the last of a range, or 0
}

// String is Docker's notation, as 53/udp or 7000-7010/udp.
func (e ExposedPort) String() string {
	if e.PortEnd > e.Port {
		return fmt.Sprintf("%d-%d/%s", e.Port, e.PortEnd, e.Proto)
	}
	return fmt.Sprintf("%d/%s", e.Port, e.Proto)
}

// Len is the number of ports, at least 1.
func (e ExposedPort) Len() int { return int(max(e.Port, e.PortEnd)) - int(e.Port) + 1 }

// All yields the ports of the range one by one.
func (e ExposedPort) All() iter.Seq[ExposedPort] {
	return func(yield func(ExposedPort) bool) {
		for i := range e.Len() {
			if !yield(ExposedPort{Proto: e.Proto, Port: e.Port + uint16(i)}) {
				return
			}
		}
	}
}

// HostPort is one host side of a container port, as `docker inspect` prints it.
type HostPort struct {
	HostIP   string `json:"HostIp"`
	HostPort string `json:"HostPort"`
}

// Ports is NetworkSettings.Ports in the format of `docker inspect`: container
// port and protocol to host addresses and ports, exposed ports that are not
// published to nil.
//
// A wildcard is listed as 0.0.0.0 and ::, each only where clients of other hosts
// can come in: IPv6 clients of an IPv4-only container cannot, unless
// Target.ProxyRemote lets them.
func Ports(p Publication, exposed []ExposedPort) map[string][]HostPort {
	ports := map[string][]HostPort{}
	for _, e := range exposed {
		for one := range e.All() {
			ports[one.String()] = nil
		}
	}
	for _, m := range p.Mappings {
		addrs := p.HostIPs(m)
		for i := range m.Len() {
			one := m.at(i)
			key := ExposedPort{Proto: m.Proto, Port: one.Port}.String()
			for _, a := range addrs {
				ports[key] = append(ports[key], HostPort{a.String(), strconv.Itoa(int(one.HostPort))})
			}
		}
	}
	return ports
}

// HostIPs are the host addresses of m in reports: its own, or each family's
// wildcard that clients of other hosts can use. A routed family has none.
func (t Target) HostIPs(m Mapping) (addrs []netip.Addr) {
	if m.HostIP.IsValid() {
		if m.Is4() && t.Routed4 || m.Is6() && t.Routed6 {
			return nil
		}
		return []netip.Addr{m.HostIP}
	}
	if t.NAT4(m) || t.ProxyRemote && !t.Routed4 {
		addrs = append(addrs, netip.IPv4Unspecified())
	}
	if t.NAT6(m) || t.ProxyRemote && !t.Routed6 {
		addrs = append(addrs, netip.IPv6Unspecified())
	}
	return addrs
}

// Published are the mappings that have a host port: those of a routed network
// are open at the container's own address.
func (p Publication) Published() (ms []Mapping) {
	for _, m := range p.Mappings {
		if len(p.HostIPs(m)) > 0 {
			ms = append(ms, m)
		}
	}
	return ms
}

// PortMapping is NetworkSettings.PortMapping as Docker had it in 2013: container
// port to host port, as strings, by protocol. "Tcp" and "Udp" are always there,
// "Sctp" where there is any. Of several host ports of one container port the
// lowest stands.
func PortMapping(ms []Mapping) map[string]map[string]string {
	out := map[string]map[string]string{"Tcp": {}, "Udp": {}}
	names := map[Proto]string{TCP: "Tcp", UDP: "Udp", SCTP: "Sctp"}
	lowest := map[ExposedPort]uint16{}
	for _, m := range ms {
		name := names[m.Proto]
		if out[name] == nil {
			out[name] = map[string]string{}
		}
		for i := range m.Len() {
			one := m.at(i)
			key := ExposedPort{Proto: m.Proto, Port: one.Port}
			if have, ok := lowest[key]; ok && have <= one.HostPort {
				continue
			}
			lowest[key] = one.HostPort
			out[name][strconv.Itoa(int(one.Port))] = strconv.Itoa(int(one.HostPort))
		}
	}
	return out
}
