package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// ownPrefix is that of our own options. They are refused wherever they are not
// known; other people's are refused only where nobody but the driver reads them.
const ownPrefix = "portolan."

const (
	optBridgeName  = "com.docker.network.bridge.name"
	optHostBinding = "com.docker.network.bridge.host_binding_ipv4"
	optProxyRemote = ownPrefix + "proxy_remote"
	optMaxFlows    = ownPrefix + "max_flows"
	optSubnet      = "--subnet" // of docker network create
)

// defaultIfacePrefix is Docker's.
const defaultIfacePrefix = "eth"

// option is one key of com.docker.network.generic (docker network create -o).
type option struct {
	name string
	set  func(n *store.Network, value string) error
}

// networkOptions are Docker's own bridge labels word for word, and ours.
var networkOptions = []option{
	{optBridgeName, func(n *store.Network, v string) error {
		n.Bridge = v
		return checkIfaceName(v)
	}},
	{"com.docker.network.bridge.enable_ip_masquerade", boolOption(func(n *store.Network, on bool) { n.NoMasquerade = !on })},
	{"com.docker.network.bridge.enable_icc", boolOption(func(n *store.Network, on bool) { n.NoICC = !on })},
	{optHostBinding, addrOption(true, func(n *store.Network, a netip.Addr) {
		if !a.IsUnspecified() { // which is the default: every address
			n.HostBinding4 = a
		}
	})},
	{"com.docker.network.bridge.gateway_mode_ipv4", modeOption(func(n *store.Network, m portmap.Mode) { n.Mode4 = m })},
	{"com.docker.network.bridge.gateway_mode_ipv6", modeOption(func(n *store.Network, m portmap.Mode) { n.Mode6 = m })},
	{"com.docker.network.bridge.inhibit_ipv4", boolOption(func(n *store.Network, on bool) { n.InhibitIPv4 = on })},
	{"com.docker.network.bridge.trusted_host_interfaces", setTrusted},
	{"com.docker.network.driver.mtu", setMTU},
	{"com.docker.network.container_iface_prefix", setIfacePrefix},
	{"com.docker.network.host_ipv4", addrOption(true, func(n *store.Network, a netip.Addr) { n.SNAT4 = a })},
	{"com.docker.network.host_ipv6", addrOption(false, func(n *store.Network, a netip.Addr) { n.SNAT6 = a })},
	{optProxyRemote, boolOption(func(n *store.Network, on bool) { n.ProxyRemote = on })},
	{optMaxFlows, setMaxFlows},
}

// parseOptions returns a network with what its options say. Its errors name
// the option.
func parseOptions(opts rawOptions) (store.Network, error) {
	n := store.Network{IfacePrefix: defaultIfacePrefix}
	if err := refuseOwn(maps.Keys(opts), "network", "-o"); err != nil {
		return n, err
	}
	var err error
	if n.Internal, err = opts.bool(keyInternal, false); err != nil {
		return n, err
	}
	generic, err := opts.generic()
	if err != nil {
		return n, err
	}
	for _, name := range slices.Sorted(maps.Keys(generic)) {
		i := slices.IndexFunc(networkOptions, func(o option) bool { return o.name == name })
		if i < 0 {
			return n, unknownOption(name)
		}
		if err := networkOptions[i].set(&n, generic[name]); err != nil {
			return n, fmt.Errorf("option %s=%s: %w", name, generic[name], err)
		}
	}
	if !n.Internal && (n.Mode4 == portmap.ModeIsolated || n.Mode6 == portmap.ModeIsolated) {
		return n, errors.New("gateway mode isolated is for internal networks only; add --internal")
	}
	return n, nil
}

// refuseOwn finds options of ours where there are none.
func refuseOwn(names iter.Seq[string], what, flag string) error {
	for _, name := range slices.Sorted(names) {
		if strings.HasPrefix(name, ownPrefix) {
			return fmt.Errorf("option %q is not known here: there are no options of Portolan for a %s but those of docker network create %s: %s", name, what, flag, knownOptions())
		}
	}
	return nil
}

func unknownOption(name string) error {
	if name == "com.docker.network.bridge.default_bridge" {
		return fmt.Errorf("option %s is for Docker's own bridge driver only: leave it out", name)
	}
	hint := ""
	if near := nearest(name, OptionNames()); near != "" {
		hint = fmt.Sprintf("; did you mean %s?", near)
	}
	return fmt.Errorf("option %q is not known%s (known are: %s)", name, hint, knownOptions())
}

// OptionNames are the options of a network that this driver knows (`docker
// network create -o NAME=VALUE`).
func OptionNames() []string {
	names := make([]string, len(networkOptions))
	for i, o := range networkOptions {
		names[i] = o.name
	}
	return names
}

func knownOptions() string { return strings.Join(OptionNames(), ", ") }

// generic returns com.docker.network.generic, whose values are strings when
// they come from the command line.
func (o rawOptions) generic() (map[string]string, error) {
	raw, ok := o[keyGeneric]
	if !ok {
		return nil, nil
	}
	var values map[string]any
	if err := json.Unmarshal(raw, &values); err != nil {
		return nil, fmt.Errorf("decode option %s: %w", keyGeneric, err)
	}
	text := make(map[string]string, len(values))
	for name, value := range values {
		switch v := value.(type) {
		case string:
			text[name] = v
		case bool:
			text[name] = strconv.FormatBool(v)
		case float64:
			text[name] = strconv.FormatFloat(v, 'f', -1, 64)
		default:
			return nil, fmt.Errorf("option %s: its value is not a string", name)
		}
	}
	return text, nil
}

// bool is a top-level option of the engine's.
func (o rawOptions) bool(name string, otherwise bool) (bool, error) {
	raw, ok := o[name]
	if !ok {
		return otherwise, nil
	}
	value, err := strconv.ParseBool(strings.Trim(string(raw), `"`))
	if err != nil {
		return false, fmt.Errorf("option %s=%s: neither true nor false", name, raw)
	}
	return value, nil
}

func boolOption(set func(*store.Network, bool)) func(*store.Network, string) error {
	return func(n *store.Network, value string) error {
		on, err := strconv.ParseBool(value)
		if err != nil {
			return errors.New("neither true nor false")
		}
		set(n, on)
		return nil
	}
}

func addrOption(is4 bool, set func(*store.Network, netip.Addr)) func(*store.Network, string) error {
	want := "an IPv6 address"
	if is4 {
		want = "an IPv4 address"
	}
	return func(n *store.Network, value string) error {
		a, err := netip.ParseAddr(value)
		if a = a.Unmap(); err != nil || a.Is4() != is4 || a.Zone() != "" || a.IsMulticast() {
			return fmt.Errorf("not %s of this host", want)
		}
		set(n, a)
		return nil
	}
}

func modeOption(set func(*store.Network, portmap.Mode)) func(*store.Network, string) error {
	modes := []portmap.Mode{portmap.ModeNAT, portmap.ModeNATUnprotected, portmap.ModeRouted, portmap.ModeIsolated}
	return func(n *store.Network, value string) error {
		m := portmap.Mode(value)
		if !slices.Contains(modes, m) {
			return fmt.Errorf("no gateway mode; there are %q", modes)
		}
		set(n, m)
		return nil
	}
}

// setTrusted takes interface names with colons between them, as Docker does.
func setTrusted(n *store.Network, value string) error {
	for name := range strings.SplitSeq(value, ":") {
		if err := checkIfaceName(name); err != nil {
			return fmt.Errorf("interface %q: %w", name, err)
		}
		n.Trusted = append(n.Trusted, name)
	}
	return nil
}

func setMTU(n *store.Network, value string) error {
	mtu, err := strconv.Atoi(value)
	if err != nil || mtu < 68 || mtu > 65535 {
		return errors.New("an MTU is a number of bytes from 68 to 65535")
	}
	n.MTU = mtu
	return nil
}

// setMaxFlows takes 0 for no limit.
func setMaxFlows(n *store.Network, value string) error {
	flows, err := strconv.Atoi(value)
	if err != nil || flows < 0 || flows > portmap.MaxFlowsLimit {
		return fmt.Errorf("a number of flows from 0 (no limit) to %d", portmap.MaxFlowsLimit)
	}
	n.MaxFlows = flows
	return nil
}

// setIfacePrefix leaves room for four digits in the 15 characters of a name.
func setIfacePrefix(n *store.Network, value string) error {
	n.IfacePrefix = value
	if len(value) > 11 {
		return errors.New("an interface prefix has at most 11 characters")
	}
	return checkIfaceName(value)
}

// checkIfaceName is the kernel's dev_valid_name, and keeps out names with a
// meaning of their own: a pattern (%, and + at the end for iptables, whose rules
// would be those of other interfaces too), what iptables-restore takes for a
// quotation, an option or a negation, and two folders of /proc/sys/net.
func checkIfaceName(name string) error {
	switch {
	case name == "", len(name) > 15:
		return errors.New("an interface name has 1 to 15 characters")
	case name == ".", name == "..", name == "all", name == "default", strings.ContainsAny(name, "/:%\"'\\ \t\n\v\f\r"),
		strings.HasSuffix(name, "+"), name[0] == '-', name[0] == '!':
		return errors.New("not a name that an interface can have")
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f {
			return errors.New("an interface name is plain ASCII")
		}
	}
	return nil
}
