package portmap

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// iptPlanEndpoint is what one endpoint publishes, in chains of its own.
func iptPlanEndpoint(is4 bool, r iptRuleset, p Publication, n Network) {
	id := iptShortID(p.Endpoint)
	routed := p.Routed6
	if is4 {
		routed = p.Routed4
	}
	var dnat, open, refuse []string
	for _, m := range p.Mappings {
		if (is4 && p.NAT4(m)) || (!is4 && p.NAT6(m)) {
			dnat = append(dnat, iptDNATRule(is4, p, m))
		}
		if routed {
			open = append(open, iptOpenRules(is4, p, m)...)
		}
		refuse = append(refuse, iptRefuseRules(is4, p, m)...)
	}
	if len(dnat) > 0 {
		r.add("nat", "DNAT-"+id, dnat...)
		r.add("nat", "DNAT", "-j "+iptPrefix+"DNAT-"+id)
	}
	iptPlanLimit(is4, r, p)
	if len(open) > 0 && !n.Internal {
		r.add("filter", "OPEN-"+id, open...)
		r.add("filter", "IN-"+n.Bridge, "-j "+iptPrefix+"OPEN-"+id)
	}
	if len(refuse) > 0 {
		r.add("filter", "REFUSE-"+id, refuse...)
		r.add("filter", "INPUT", "-j "+iptPrefix+"REFUSE-"+id)
	}
}

// iptShortID names an endpoint's chains: the first twelve letters of an ID of
// the engine, as its own command line prints it.
func iptShortID(endpoint string) string {
	if b, err := hex.DecodeString(endpoint); err == nil && len(b) == 32 {
		return strings.ToLower(endpoint[:12])
	}
	sum := sha256.Sum256([]byte(endpoint))
	return hex.EncodeToString(sum[:6])
}

// iptPorts matches a closed range of destination ports.
func iptPorts(p Proto, first, last uint16) string {
	if first == last {
		return fmt.Sprintf("-p %s -m %s --dport %d ", p, p, first)
	}
	return fmt.Sprintf("-p %s -m %s --dport %d:%d ", p, p, first, last)
}

func iptTo(m Mapping) string {
	if m.Wildcard() {
		return ""
	}
	return fmt.Sprintf("-d %s ", netip.PrefixFrom(m.HostIP, m.HostIP.BitLen()))
}

func iptComment(endpoint string) string { return "-m comment --comment " + endpoint + " " }

// iptDNATRule translates a mapping. Where the numbers are equal, the port is
// left as it is; a shifted range keeps its order by "/", the host port that
// the first container port stands for.
func iptDNATRule(is4 bool, p Publication, m Mapping) string {
	to := p.IPv4.String()
	if !is4 {
		to = p.IPv6.String()
	}
	if m.Shifted() {
		if !is4 {
			to = "[" + to + "]"
		}
		to = fmt.Sprintf("%s:%d", to, m.Port)
		if m.Len() > 1 {
			to = fmt.Sprintf("%s-%d/%d", to, m.PortEnd(), m.HostPort)
		}
	}
	return iptTo(m) + iptPorts(m.Proto, m.HostPort, m.HostPortEnd) + iptComment(p.Endpoint) + "-j DNAT --to-destination " + to
}

// iptOpenRules open a container port of a routed network at the container's
// own address.
func iptOpenRules(is4 bool, p Publication, m Mapping) []string {
	addr, meant := p.IPv6, m.Is6()
	if is4 {
		addr, meant = p.IPv4, m.Is4()
	}
	if !meant || !addr.IsValid() {
		return nil
	}
	match := fmt.Sprintf("-d %s %s%s", netip.PrefixFrom(addr, addr.BitLen()), iptPorts(m.Proto, m.Port, m.PortEnd()), iptComment(p.Endpoint))
	return []string{match + "-j " + iptPrefix + "PORTS", match + "-j ACCEPT"}
}

// iptRefuseRules refuse clients of other hosts that would reach the reserved
// socket, where the proxy serves this host's own clients only. IPv4 broadcast
// and multicast are not refused: a wildcard UDP port always serves them.
func iptRefuseRules(is4 bool, p Publication, m Mapping) []string {
	if p.ProxyRemote || m.Proto == SCTP || m.HostIP.IsLoopback() {
		return nil
	}
	ports := iptPorts(m.Proto, m.HostPort, m.HostPortEnd) + iptComment(p.Endpoint)
	if is4 {
		if !m.Is4() || p.Routed4 || p.NAT4(m) {
			return nil
		}
		return []string{iptTo(m) + ports + "-m addrtype --dst-type LOCAL " + iptReject("icmp-port-unreachable", m.Proto)}
	}
	// As in nftables, a reset may not find its way to a link-local address.
	const linkLocal = "-s fe80::/10 " // it comes first in the kernel's own words
	unreachable, reset := iptReject("icmp6-port-unreachable", UDP), iptReject("icmp6-port-unreachable", m.Proto)
	switch {
	case !m.Is6() || p.Routed6:
		return nil
	case p.NAT6(m) && m.Wildcard():
		return []string{linkLocal + ports + unreachable, "-d fe80::/10 " + ports + reset}
	case p.NAT6(m):
		return []string{linkLocal + iptTo(m) + ports + unreachable}
	}
	return []string{linkLocal + iptTo(m) + ports + unreachable, iptTo(m) + ports + reset}
}

// iptReject refuses as a closed port does.
func iptReject(unreachable string, p Proto) string {
	if p == TCP {
		unreachable = "tcp-reset"
	}
	return "-j REJECT --reject-with " + unreachable
}
