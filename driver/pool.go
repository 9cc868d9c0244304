package driver

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// Auxiliary addresses with a meaning: what containers are told in place of the
// bridge's own address (docker network create --aux-address).
const (
	auxGateway4 = "DefaultGatewayIPv4"
	auxGateway6 = "DefaultGatewayIPv6"
)

// pool is the addresses of one family of a network.
type pool struct {
	subnet  netip.Prefix
	gateway netip.Addr // the engine's, for the bridge; may be the zero Addr
	nextHop netip.Addr // what containers are told; may be the zero Addr
}

// parseNetwork returns the record of a new network, or what is wrong with the
// request. It looks at nothing but the request.
func parseNetwork(r createNetworkRequest) (store.Network, error) {
	n, err := parseOptions(r.Options)
	if err != nil {
		return n, err
	}
	if !validID(r.NetworkID) {
		return n, fmt.Errorf("%q is not a network ID", r.NetworkID)
	}
	n.ID, n.Phase = r.NetworkID, store.Intent
	if n.Bridge == "" {
		n.Bridge = "pl-" + n.ID[:12]
	}
	p4, err := parseFamily(r.Options, keyEnableIPv4, r.IPv4Data, true)
	if err != nil {
		return n, err
	}
	p6, err := parseFamily(r.Options, keyEnableIPv6, r.IPv6Data, false)
	if err != nil {
		return n, err
	}
	switch {
	case !p4.subnet.IsValid() && !p6.subnet.IsValid():
		return n, fmt.Errorf("no address pool at all; give one with %s, or leave IPv4 on", optSubnet)
	case p6.subnet.IsValid() && n.MTU != 0 && n.MTU < 1280:
		return n, fmt.Errorf("an MTU of %d is too small for IPv6, which needs 1280; choose a larger one or leave out --ipv6", n.MTU)
	}
	n.Subnet4, n.Subnet6 = p4.subnet, p6.subnet
	n.Gateway4, n.Gateway6 = p4.gateway, p6.gateway
	n.NextHop4, n.NextHop6 = p4.nextHop, p6.nextHop
	if n.Mode4 == portmap.ModeIsolated || n.InhibitIPv4 {
		n.Gateway4 = netip.Addr{}
	}
	if n.Mode6 == portmap.ModeIsolated {
		n.Gateway6 = netip.Addr{}
	}
	return n, checkGateways(n, p4, p6)
}

// checkGateways refuses networks whose containers would have no way out.
func checkGateways(n store.Network, pools ...pool) error {
	if n.Internal {
		return nil
	}
	for _, p := range pools {
		if p.subnet.IsValid() && !p.nextHop.IsValid() {
			return fmt.Errorf("pool %s has no gateway; give one with --gateway, or make the network --internal", p.subnet)
		}
	}
	return nil
}

// parseFamily returns the pool of one family, the zero pool if the network has
// not got it.
func parseFamily(opts rawOptions, key string, data []network.IPAMData, is4 bool) (pool, error) {
	enabled, err := opts.bool(key, len(data) > 0)
	if err != nil || !enabled {
		return pool{}, err
	}
	family := "IPv6"
	if is4 {
		family = "IPv4"
	}
	switch len(data) {
	case 0:
		if is4 {
			return pool{}, nil // 29 says so for networks without addresses
		}
		return pool{}, fmt.Errorf("%s without an address pool; give one with %s", family, optSubnet)
	case 1:
		return parsePool(data[0], is4)
	}
	return pool{}, fmt.Errorf("%d %s pools; a bridge network has one for each family", len(data), family)
}

func parsePool(data network.IPAMData, is4 bool) (pool, error) {
	prefix, err := netip.ParsePrefix(data.Pool)
	switch {
	case err != nil:
		return pool{}, fmt.Errorf("pool %q is not an address range in CIDR notation, as 172.30.0.0/24", data.Pool)
	case prefix.Addr().Is4() != is4 || prefix.Addr().Is4In6():
		return pool{}, fmt.Errorf("pool %s is of the other family", prefix)
	}
	p := pool{subnet: prefix.Masked()}
	a := p.subnet.Addr()
	if a.IsLoopback() || a.IsMulticast() || !is4 && a.IsLinkLocalUnicast() || p.subnet.Bits() == 0 {
		return pool{}, fmt.Errorf("pool %s is not for containers; choose another with %s", p.subnet, optSubnet)
	}
	if p.gateway, err = p.member("gateway", data.Gateway); err != nil {
		return pool{}, err
	}
	aux := auxGateway6
	if is4 {
		aux = auxGateway4
	}
	text, _ := data.AuxAddresses[aux].(string)
	if p.nextHop, err = p.member(aux, text); err != nil {
		return pool{}, err
	}
	if !p.nextHop.IsValid() {
		p.nextHop = p.gateway
	}
	return p, nil
}

// member parses an address of the pool, with or without a prefix length; none
// at all is the zero Addr.
func (p pool) member(what, text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		var prefix netip.Prefix
		if prefix, err = netip.ParsePrefix(text); err != nil {
			return a, fmt.Errorf("%s %q is not an address", what, text)
		}
		a = prefix.Addr()
	}
	if !p.subnet.Contains(a) {
		return a, fmt.Errorf("%s %s is not in the pool %s", what, a, p.subnet)
	}
	return a, nil
}

// overlap says which pool of old is in the way of n.
func overlap(n, old store.Network) error {
	pairs := [][2]netip.Prefix{{n.Subnet4, old.Subnet4}, {n.Subnet6, old.Subnet6}}
	for _, p := range pairs {
		if p[0].IsValid() && p[1].IsValid() && p[0].Overlaps(p[1]) {
			return fmt.Errorf("pool %s overlaps %s of network %.12s; choose another with %s", p[0], p[1], old.ID, optSubnet)
		}
	}
	return nil
}

// parseAddrs returns the addresses that the engine chose for an endpoint.
func parseAddrs(n store.Network, i *network.EndpointInterface) (addr4, addr6 netip.Prefix, err error) {
	if i == nil || i.Address == "" && i.AddressIPv6 == "" {
		return addr4, addr6, errors.New("the engine gave it no address; Portolan needs an IPAM driver that does")
	}
	if addr4, err = parseAddr(i.Address, n.Subnet4, n.Gateway4); err != nil {
		return addr4, addr6, err
	}
	addr6, err = parseAddr(i.AddressIPv6, n.Subnet6, n.Gateway6)
	return addr4, addr6, err
}

func parseAddr(text string, subnet netip.Prefix, gateway netip.Addr) (netip.Prefix, error) {
	if text == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is not an address in CIDR notation", text)
	case !subnet.IsValid() || !subnet.Contains(p.Addr()):
		return p, fmt.Errorf("address %s is not in the network's pools", p.Addr())
	case p.Addr() == gateway:
		return p, fmt.Errorf("address %s is the network's gateway; choose another with --ip", p.Addr())
	}
	return netip.PrefixFrom(p.Addr(), subnet.Bits()), nil
}

// validID says whether id is one of the engine's: 64 hexadecimal digits, or
// Swarm's 25 of base 36.
func validID(id string) bool {
	last := byte('z')
	switch len(id) {
	case 64:
		last = 'f'
	case 25:
	default:
		return false
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > last) {
			return false
		}
	}
	return true
}
