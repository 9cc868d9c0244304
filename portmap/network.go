package portmap

import "net/netip"

// Mode is a gateway mode of one address family of a network, by the names of
// Docker's bridge driver (com.docker.network.bridge.gateway_mode_ipv4).
type Mode string

// The gateway modes. The zero Mode means ModeNAT.
const (
	ModeNAT            Mode = "nat"             // published ports by DNAT, the rest closed
	ModeNATUnprotected Mode = "nat-unprotected" // as nat, but every port of a container can be reached by its own address
	ModeRouted         Mode = "routed"          // no NAT: published container ports are open at the container's own address
	ModeIsolated       Mode = "isolated"        // the bridge has no address; internal networks only
)

// Network is what the rules need to know of a network.
type Network struct {
	ID     string `json:"id"`
	Bridge string `json:"bridge"` // interface name

	// Subnet4 and Subnet6 are the zero Prefix where the network has no such
	// family; Gateway4 and Gateway6 are the bridge's own addresses in them, the
	// zero Addr where it has none (ModeIsolated).
	Subnet4  netip.Prefix `json:"subnet4,omitzero"`
	Subnet6  netip.Prefix `json:"subnet6,omitzero"`
	Gateway4 netip.Addr   `json:"gateway4,omitzero"`
	Gateway6 netip.Addr   `json:"gateway6,omitzero"`
	Mode4    Mode         `json:"mode4,omitempty"`
	Mode6    Mode         `json:"mode6,omitempty"`

	// Internal: nothing goes in or out, nothing is published.
	Internal bool `json:"internal,omitempty"`
	// NoICC: containers of this network may not talk to one another, but by
	// published ports. Its bridge ports belong to PortGroup.
	NoICC bool `json:"noICC,omitempty"`
	// NoMasquerade: outbound traffic keeps the container's address.
	NoMasquerade bool `json:"noMasquerade,omitempty"`
	// SNAT4 and SNAT6, where valid, are the source address of outbound traffic
	// in place of the outgoing interface's.
	SNAT4 netip.Addr `json:"snat4,omitzero"`
	SNAT6 netip.Addr `json:"snat6,omitzero"`
	// Trusted are the host interfaces from which every port of a container can
	// be reached by its own address.
	Trusted []string `json:"trusted,omitempty"`
}

// Target is where mappings lead: one endpoint's addresses in its network.
type Target struct {
	Endpoint string `json:"endpoint"`
	Network  string `json:"network"`
	// IPv4 and IPv6 are the container's; the zero Addr where it has none.
	IPv4 netip.Addr `json:"ipv4,omitzero"`
	IPv6 netip.Addr `json:"ipv6,omitzero"`
	// Routed4 and Routed6: in this family nothing is translated or reserved;
	// the mappings' container ports are open at the container's own address.
	Routed4 bool `json:"routed4,omitempty"`
	Routed6 bool `json:"routed6,omitempty"`
	// ProxyRemote lets clients of other hosts use ports that only the proxy can
	// serve to them (IPv6 clients of an IPv4-only container and the reverse, and
	// link-local clients); the container sees the gateway's address in place of
	// theirs. Off, such clients are refused and only this host's own are served.
	ProxyRemote bool `json:"proxyRemote,omitempty"`
	// MaxFlows is how many conntrack entries each mapping may have in the kernel
	// at a time, up to MaxFlowsLimit; what would make one more is dropped. 0 is
	// no limit.
	MaxFlows int `json:"maxFlows,omitempty"`
}

// Publication is all that one endpoint publishes.
type Publication struct {
	Target
	Mappings []Mapping `json:"mappings"`
}

// Held are p's mappings as they take host ports: a routed family takes none, so
// that a mapping of both families is one of the other alone, and a mapping of
// routed families alone is not here.
func (p Publication) Held() []Mapping {
	if !p.Routed4 && !p.Routed6 {
		return p.Mappings
	}
	var held []Mapping
	for _, m := range p.Mappings {
		switch {
		case m.Is4() && m.Is6():
			if p.Routed4 && p.Routed6 {
				continue
			}
			m.HostIP = netip.IPv4Unspecified()
			if p.Routed4 {
				m.HostIP = netip.IPv6Unspecified()
			}
		case m.Is4() && p.Routed4, m.Is6() && p.Routed6:
			continue
		}
		held = append(held, m)
	}
	return held
}

// NAT4 and NAT6 say whether the kernel carries m to t in that family: the
// mapping is meant for it, the container has such an address, and the family
// is translated. ::1 is never carried (IPv6 has no route_localnet).
func (t Target) NAT4(m Mapping) bool { return m.Is4() && t.IPv4.IsValid() && !t.Routed4 }

// NAT6 is NAT4 for IPv6.
func (t Target) NAT6(m Mapping) bool {
	return m.Is6() && t.IPv6.IsValid() && !t.Routed6 && m.HostIP != netip.IPv6Loopback()
}
