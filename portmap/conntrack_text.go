package portmap

import (
	"bufio"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// smallTable is up to how many entries the conntrack table is read as text. A
// dump by netlink locks every bucket of the kernel's one table, of which most
// hosts have 262,144, and takes 10 ms where there is no entry at all; the text
// takes 0.4 ms. But older kernels go through the table from the start again for
// every page of it.
const smallTable = 1000

// eachListed calls f for the UDP entries that net/nf_conntrack of /proc lists, if
// the table is small. It returns false where it is not, or the host does not
// show it so (CONFIG_NF_CONNTRACK_PROCFS): f has then not seen every entry.
func eachListed(sysctlDir string, f func(flow)) bool {
	n, err := strconv.Atoi(readSysctl(sysctlDir, "netfilter/nf_conntrack_count"))
	if err != nil || n > smallTable {
		return false
	}
	if n == 0 {
		return true
	}
	// As a netlink socket's, the network namespace is the calling thread's.
	table, err := os.Open("/proc/thread-self/net/nf_conntrack")
	if err != nil {
		return false
	}
	defer table.Close()
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		if e, isUDP, ok := parseListed(lines.Text()); !ok {
			return false
		} else if isUDP {
			f(e)
		}
	}
	return lines.Err() == nil
}

// parseListed reads what matters of a line: family, protocol, then both tuples,
// the original one first. It has no raw attributes.
func parseListed(line string) (e flow, isUDP, ok bool) {
	words := strings.Fields(line)
	if len(words) < 4 {
		return e, false, false
	}
	if words[3] != "17" {
		return e, false, true
	}
	values := map[string][]string{} // by key: of the original tuple, and of the reply
	for _, w := range words[4:] {
		if key, value, found := strings.Cut(w, "="); found {
			values[key] = append(values[key], value)
		}
	}
	side := func(addr, port string, i int) (netip.AddrPort, bool) {
		if len(values[addr]) != 2 || len(values[port]) != 2 {
			return netip.AddrPort{}, false
		}
		a, err := netip.ParseAddr(values[addr][i])
		p, perr := strconv.ParseUint(values[port][i], 10, 16)
		return netip.AddrPortFrom(a, uint16(p)), err == nil && perr == nil
	}
	e.proto = UDP
	e.origDst, ok = side("dst", "dport", 0)
	if ok {
		e.replySrc, ok = side("src", "sport", 1)
	}
	return e, true, ok
}
