package enginetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Snapshot is the network state of a namespace as text, by kind: what a program
// that cleans up after itself leaves as it was.
type Snapshot map[string][]string

// kinds are what Take looks at, in the order in which Diff reports them.
var kinds = []struct {
	name string
	take func(Namespace) ([]string, error)
}{
	{"nft list ruleset", listing("nft", "list", "ruleset")},
	{"iptables-save", listing("iptables-save")},
	{"ip6tables-save", listing("ip6tables-save")},
	{"devices", devices},
	{"routes", routes},
	{"policy rules", listing("ip", "rule")},
	{"sysctls", sysctls},
	{"sockets", listing("ss", "-H", "-lntu")},
}

// Take looks at everything in the namespace. The rules are listed by the tools
// that an administrator would use.
func (n Namespace) Take() (Snapshot, error) {
	s := Snapshot{}
	for _, k := range kinds {
		lines, err := k.take(n)
		if err != nil {
			return nil, fmt.Errorf("list %s of %s: %w", k.name, n.Name, err)
		}
		s[k.name] = lines
	}
	return s, nil
}

// touchTables makes the tables and chains that iptables makes when they are
// first used and never removes, so that using them is no difference.
func touchTables(n Namespace) error {
	const tables = `*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
COMMIT
`
	for _, tool := range []string{"iptables-restore", "ip6tables-restore"} {
		cmd := n.Command(tool)
		cmd.Stdin = strings.NewReader(tables)
		if _, err := Run(cmd); err != nil {
			return err
		}
	}
	return nil
}

// Diff says what is in after and not in before (+) and what is no longer there
// (-), a line each. It is empty if nothing has changed.
func Diff(before, after Snapshot) string {
	var out strings.Builder
	for _, k := range kinds {
		for _, line := range without(after[k.name], before[k.name]) {
			fmt.Fprintf(&out, "+ %s: %s\n", k.name, line)
		}
		for _, line := range without(before[k.name], after[k.name]) {
			fmt.Fprintf(&out, "- %s: %s\n", k.name, line)
		}
	}
	return out.String()
}

// without is a without the lines of b, each as often as it is there.
func without(a, b []string) []string {
	left := map[string]int{}
	for _, line := range b {
		left[line]++
	}
	var out []string
	for _, line := range a {
		if left[line] > 0 {
			left[line]--
			continue
		}
		out = append(out, line)
	}
	return out
}

// What changes without a rule having changed: packet and byte counters, comment
// lines with the time, addresses that the kernel chose by itself.
var (
	counters = regexp.MustCompile(`packets \d+ bytes \d+|\[\d+:\d+\]`)
	blanks   = regexp.MustCompile(`\s+`)
	metrics  = regexp.MustCompile(`expires \S+|pref \S+|\b(linkdown|dead)\b`)
)

func listing(name string, args ...string) func(Namespace) ([]string, error) {
	return func(n Namespace) ([]string, error) {
		out, err := n.Command(name, args...).Output()
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			return nil, fmt.Errorf("%w: %s", err, e.Stderr)
		}
		if err != nil {
			return nil, err
		}
		return normalise(string(out)), nil
	}
}

func normalise(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		line = counters.ReplaceAllString(line, "")
		line = metrics.ReplaceAllString(line, "")
		if line = strings.TrimSpace(blanks.ReplaceAllString(line, " ")); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// routes are those of both families and all tables. IPv6 has link-local and
// multicast routes by itself on a device that has had a carrier once.
func routes(n Namespace) ([]string, error) {
	lines, err := listing("ip", "route", "show", "table", "all")(n)
	return slices.DeleteFunc(lines, func(line string) bool {
		return strings.Contains(line, "fe80::") || strings.Contains(line, "multicast ff00::/8")
	}), err
}

func devices(n Namespace) ([]string, error) {
	var names []string
	err := n.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			names = append(names, l.Attrs().Name+" "+l.Type())
		}
		return err
	})
	slices.Sort(names)
	return names, err
}

// sysctls are those that a network driver may touch, of every device.
func sysctls(n Namespace) ([]string, error) {
	patterns := []string{
		"ipv4/ip_forward", "ipv4/conf/*/forwarding", "ipv4/conf/*/route_localnet", "ipv4/conf/*/rp_filter",
		"ipv4/conf/*/arp_*", "ipv4/conf/*/accept_local",
		"ipv6/conf/*/forwarding", "ipv6/conf/*/accept_ra", "ipv6/conf/*/disable_ipv6", "ipv6/conf/*/accept_dad",
		"ipv6/conf/*/proxy_ndp", "bridge/bridge-nf-call-*", "netfilter/nf_conntrack_*",
	}
	// These count or follow what others do.
	volatile := regexp.MustCompile(`nf_conntrack_(count|buckets|max|expect_max)$`)
	var values []string
	err := n.Do(func() error {
		for _, pattern := range patterns {
			paths, err := filepath.Glob("/proc/sys/net/" + pattern)
			if err != nil {
				return err
			}
			for _, path := range paths {
				value, err := os.ReadFile(path)
				if err != nil || volatile.MatchString(path) {
					continue // write-only, or gone with its device
				}
				values = append(values, strings.TrimPrefix(path, "/proc/sys/net/")+" = "+strings.TrimSpace(string(value)))
			}
		}
		return nil
	})
	slices.Sort(values)
	return values, err
}
