package portmap_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

// handles are the kernel's numbers of our sets and chains: what is deleted and
// made again has another.
func handles(t *testing.T) (lines []string) {
	t.Helper()
	for _, line := range strings.Split(command(t, "nft", "-a", "list", "table", "inet", "portolan"), "\n") {
		if regexp.MustCompile(`^\t(set|map|chain) .* # handle \d+$`).MatchString(line) {
			lines = append(lines, line)
		}
	}
	require.NotEmpty(t, lines)
	return lines
}

// TestRenewKeeps takes over a table that fits: its sets and chains stay, and so
// do packets that come meanwhile.
func TestRenewKeeps(t *testing.T) {
	m := loaded(t)
	before, rules := handles(t), command(t, "nft", "list", "table", "inet", "portolan")
	require.NoError(t, m.Close())
	m = loaded(t)
	assert.Equal(t, before, handles(t))
	assert.Equal(t, sortedLines(rules), sortedLines(command(t, "nft", "list", "table", "inet", "portolan")))
	requireLoaded(t, m)

	require.NoError(t, m.Close())
	m, err := portmap.NewNFTables(nil)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = m.Load(nil, nil), m.Close() })
	require.NoError(t, m.Load([]portmap.Network{rigNet}, nil))
	requireListed(t, m)
	assert.Subset(t, before, handles(t))
	assert.NotContains(t, command(t, "nft", "list", "table", "inet", "portolan"), "e1")
}

// TestRenewRepairs takes over a table in which others have been at work while it
// had no owner. What is not as it should be is made again, and the rest stays.
func TestRenewRepairs(t *testing.T) {
	const table = "inet portolan "
	for name, commands := range map[string][]string{
		"elements":            {"add element " + table + "udp4-single { 99 : 172.20.0.9 . 99 }", "delete element " + table + "udp4-single { 53 }", "add element " + table + "tcp4 { 100-200 : 172.20.0.9 }"},
		"element of another":  {"delete element " + table + "udp4-single { 53 }", "add element " + table + "udp4-single { 53 : 172.20.0.9 . 53 }"},
		"interval":            {"flush map " + table + "udp4", "add element " + table + "udp4 { 9000-10004 : 172.20.0.9 }"},
		"verdict":             {"add chain " + table + "stray", "add element " + table + "host-addr4 { 192.0.2.1 : jump stray }", "add element " + table + "host-addr4 { 192.0.2.2 : accept }"},
		"policy":              {"add chain " + table + "filter-forward { policy drop; }"},
		"rules":               {"flush chain " + table + "filter-forward", "insert rule " + table + "nat-prerouting accept", "add rule " + table + "guard accept"},
		"chains":              {"add chain " + table + "stray { type filter hook input priority 0; policy drop; }", "add set " + table + "stray { type ipv4_addr; }"},
		"set of another kind": {"flush chain " + table + "dispatch", "delete map " + table + "udp4-single", "add set " + table + "udp4-single { type ipv4_addr; }"},
		"chain elsewhere":     {"delete chain " + table + "nat-output", "add chain " + table + "nat-output { type nat hook output priority 5; policy accept; }"},
	} {
		t.Run(name, func(t *testing.T) {
			m := loaded(t)
			rules := command(t, "nft", "list", "table", "inet", "portolan")
			require.NoError(t, m.Close())
			for _, c := range commands {
				command(t, append([]string{"nft"}, c)...)
			}
			require.NotEqual(t, sortedLines(rules), sortedLines(command(t, "nft", "list", "table", "inet", "portolan")))
			m = loaded(t)
			assert.Equal(t, sortedLines(rules), sortedLines(command(t, "nft", "list", "table", "inet", "portolan")))
			requireLoaded(t, m)
			repaired, err := m.Check()
			require.NoError(t, err)
			assert.False(t, repaired)
		})
	}
}

// sortedLines are the lines of a listing, each element on one of its own: their
// order, and the process that has the table, may differ.
func sortedLines(listing string) map[string]int {
	listing = regexp.MustCompile(`# progname.*|counter packets \d+ bytes \d+`).ReplaceAllString(listing, "")
	listing = strings.NewReplacer("elements = {", "\n", "},", "\n", ", ", "\n", ",\n", "\n").Replace(listing)
	lines := map[string]int{}
	for line := range strings.Lines(listing) {
		if line = strings.Trim(line, " \t\n{}"); line != "" {
			lines[line]++
		}
	}
	return lines
}
