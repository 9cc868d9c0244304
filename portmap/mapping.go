package portmap

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Origin says who asked for a mapping.
type Origin string

// The origins. The zero Origin means Engine.
const (
	OriginEngine  Origin = "engine"  // docker run -p
	OriginCommand Origin = "command" // portolan publish
	OriginSticky  Origin = "sticky"  // remembered from an earlier run
)

// Mapping sends a closed range of host ports to a range of container ports of
// the same length. A single port is a range of one.
//
// It has no container address: that is the Target's, which may move.
type Mapping struct {
	Proto Proto `json:"proto"`
	// HostIP is the host address, or one family's wildcard (0.0.0.0, ::). The
	// zero Addr means every address of the host, in both families.
	HostIP netip.Addr `json:"hostIP,omitzero"`
	// HostPort and HostPortEnd are the first and the last host port, 1 to
	// 65535.
	HostPort    uint16 `json:"hostPort"`
	HostPortEnd uint16 `json:"hostPortEnd"`
	// Port is the first container port; the others follow in order.
	Port   uint16 `json:"port"`
	Origin Origin `json:"origin,omitempty"`
}

// Len is the number of ports, at least 1.
func (m Mapping) Len() int { return int(m.HostPortEnd) - int(m.HostPort) + 1 }

// PortEnd is the last container port.
func (m Mapping) PortEnd() uint16 { return m.Port + (m.HostPortEnd - m.HostPort) }

// Shifted says whether host and container numbers differ. A shifted range is
// one element per port in nftables, whose DNAT to a port range does not keep
// the order.
func (m Mapping) Shifted() bool { return m.HostPort != m.Port }

// Is4 says whether IPv4 clients of the host address are meant: it is an IPv4
// address or none at all.
func (m Mapping) Is4() bool { return !m.HostIP.IsValid() || m.HostIP.Is4() }

// Is6 says whether IPv6 clients of the host address are meant.
func (m Mapping) Is6() bool { return !m.HostIP.IsValid() || m.HostIP.Is6() }

// Wildcard says whether the mapping is for every address of the host, of one
// family or both.
func (m Mapping) Wildcard() bool { return !m.HostIP.IsValid() || m.HostIP.IsUnspecified() }

// String is the notation of `portolan ls`: [HOSTIP:]A[-B]->C[-D][/udp|/sctp],
// the host address only where one was given, TCP without a suffix.
func (m Mapping) String() string {
	var s strings.Builder
	switch {
	case m.HostIP.Is6():
		fmt.Fprintf(&s, "[%s]:", m.HostIP)
	case m.HostIP.IsValid():
		fmt.Fprintf(&s, "%s:", m.HostIP)
	}
	if m.HostPort == m.HostPortEnd {
		fmt.Fprintf(&s, "%d->%d", m.HostPort, m.Port)
	} else {
		fmt.Fprintf(&s, "%d-%d->%d-%d", m.HostPort, m.HostPortEnd, m.Port, m.PortEnd())
	}
	if m.Proto != TCP {
		fmt.Fprintf(&s, "/%s", m.Proto)
	}
	return s.String()
}

// ParseMapping reads what Mapping.String writes, which has no origin. The error
// wraps ErrBadPort.
func ParseMapping(s string) (Mapping, error) {
	host, container, _ := strings.Cut(s, "->")
	container, suffix, _ := strings.Cut(container, "/")
	m := Mapping{Proto: TCP}
	bad := func(err error) (Mapping, error) {
		return Mapping{}, fmt.Errorf("mapping %q: %w: %w", s, ErrBadPort, err)
	}
	var err error
	if suffix != "" {
		if m.Proto, err = ParseProto(suffix); err != nil {
			return bad(err)
		}
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		if m.HostIP, err = netip.ParseAddr(strings.Trim(host[:i], "[]")); err != nil {
			return bad(err)
		}
		host = host[i+1:]
	}
	first, last, ranged := strings.Cut(host, "-")
	if !ranged {
		last = first
	}
	to, _, _ := strings.Cut(container, "-")
	for i, number := range []*uint16{&m.HostPort, &m.HostPortEnd, &m.Port} {
		n, err := strconv.ParseUint([]string{first, last, to}[i], 10, 16)
		if err != nil {
			return bad(err)
		}
		*number = uint16(n)
	}
	if m.String() != s {
		return bad(fmt.Errorf("it would be written %q", m))
	}
	return m, nil
}
