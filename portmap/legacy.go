package portmap

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"time"
)

// legacyDocker says whether Docker keeps its chains in iptables-legacy, whose
// tables are apart from nftables: a rule of ours in DOCKER-USER has to be set
// with the same tool. The kernel does not list legacy chains by netlink, so the
// host's own program is asked, where there is one.
//
// A service starts before the engine does. Where neither variant has the chains
// yet, they will be where the program is that the engine calls.
func legacyDocker() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	has := func(program string) bool {
		return exec.CommandContext(ctx, program, "-w", "5", "-n", "-L", DockerUserChain).Run() == nil
	}
	if legacyTables() && has(legacyIPTables.IPv4) {
		return true
	}
	version, err := exec.CommandContext(ctx, "iptables", "--version").Output()
	return err == nil && strings.Contains(string(version), "(legacy)") && !has("iptables-nft")
}

// legacyIPTables are the programs of the legacy variant.
var legacyIPTables = IPTablesConfig{IPv4: "iptables-legacy", IPv6: "ip6tables-legacy"}

// legacyTables says whether the kernel has tables of the legacy variant in this
// network namespace, and the host has its program.
func legacyTables() bool {
	names, err := os.ReadFile("/proc/net/ip_tables_names")
	if err != nil || !strings.Contains(string(names), "filter") {
		return false
	}
	_, err = exec.LookPath(legacyIPTables.IPv4)
	return err == nil
}
