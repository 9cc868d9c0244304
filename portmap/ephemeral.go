package portmap

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// portRange is a closed range of port numbers.
type portRange struct{ first, last uint16 }

func (r portRange) has(p uint16) bool { return r.first <= p && p <= r.last }

// ianaDynamic is the range that RFC 6335 sets aside for ports that nobody
// asked for by number.
var ianaDynamic = portRange{49153, 65535}

// ephemeralPorts are the ports that "any free port" may mean: the range of
// net.ipv4.ip_local_port_range without those of ip_local_reserved_ports
// (ip-sysctl in the kernel's documentation), both read at each call.
func ephemeralPorts(sysctlDir string) (portRange, []portRange) {
	return localPortRange(readSysctl(sysctlDir, "ipv4/ip_local_port_range")),
		reservedPorts(readSysctl(sysctlDir, "ipv4/ip_local_reserved_ports"))
}

func readSysctl(dir, name string) string {
	b, err := os.ReadFile(dir + "/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func localPortRange(s string) portRange {
	var r portRange
	if _, err := fmt.Sscan(s, &r.first, &r.last); err != nil || r.first == 0 || r.last < r.first {
		return ianaDynamic
	}
	return r
}

// reservedPorts reads a list like 8080,9000-9010.
func reservedPorts(s string) (rs []portRange) {
	for part := range strings.SplitSeq(s, ",") {
		a, b, isRange := strings.Cut(part, "-")
		first, err := strconv.ParseUint(a, 10, 16)
		if err != nil {
			continue
		}
		last := first
		if isRange {
			if last, err = strconv.ParseUint(b, 10, 16); err != nil {
				continue
			}
		}
		rs = append(rs, portRange{uint16(first), uint16(last)})
	}
	return rs
}
