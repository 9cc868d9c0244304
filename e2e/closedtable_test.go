package e2e

import (
	"bytes"
	"debug/buildinfo"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	closedTable = flag.String("closed-table", "", "write the table of TestClosed between the markers of this Markdown `file`")
	closedNewer = flag.String("closed-newer", "", "the `folder` with the programs of a newer engine, for the table's last column")
)

// The lines between which everything of the Markdown file is the table's.
const (
	closedBegin = "<!-- closed: begin -->\n"
	closedEnd   = "<!-- closed: end -->\n"
)

// table is what the rows came to with each driver.
type table struct {
	mu      sync.Mutex // guards below
	titles  []string
	columns []string
	cells   map[[2]string]string // title and column
}

func newClosedTable() *table { return &table{cells: map[[2]string]string{}} }

// add is a column. Rows of which nothing has arrived are closed.
func (tb *table) add(column string, rows []closedRow, arrived map[string][]shot) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	tb.columns = append(tb.columns, column)
	tb.titles = tb.titles[:0]
	for _, r := range rows {
		tb.titles = append(tb.titles, r.title)
		tb.cells[[2]string{r.title, column}] = cell(r, arrived[r.title])
	}
}

// cell says which protocols arrived, and how many of the probes.
func cell(r closedRow, arrived []shot) string {
	if len(arrived) == 0 {
		return "closed"
	}
	var families []string
	for _, is4 := range []bool{true, false} {
		var names []string
		for _, p := range protos {
			if slices.ContainsFunc(arrived, func(s shot) bool { return s.proto == p && s.is4() == is4 }) {
				names = append(names, p.String())
			}
		}
		if len(names) > 0 {
			family := map[bool]string{true: "IPv4", false: "IPv6"}[is4]
			families = append(families, family+" "+strings.Join(names, ", "))
		}
	}
	return fmt.Sprintf("**open**: %s (%d of %d)", strings.Join(families, "; "), len(arrived), len(r.probes)*len(protos))
}

// builtIn makes the column of Docker's own driver.
func (tb *table) builtIn(t *testing.T) {
	l := newClosedLab(t, "")
	column := "Docker " + l.must("docker", "version", "--format", "{{.Server.Version}}")
	// One that go install has made does not know its version.
	if info, err := buildinfo.ReadFile(filepath.Join(os.Getenv("ENGINE"), "dockerd")); err == nil {
		column = "Docker, moby " + info.Main.Version
	}
	l.requireOpen("once") // addresses are resolved
	trusting := shots(l.trusting())
	l.fire(trusting)
	noTrust := l.await(&trusting) != nil
	arrived := l.probe("as started")
	for title, some := range arrived {
		for _, s := range some {
			t.Logf("arrived: %s: %s", title, s)
		}
	}
	rows := l.rows()
	tb.add(column, rows, arrived)
	for _, r := range rows {
		at := [2]string{r.title, column}
		switch {
		case r.docker != "":
			tb.cells[at] = r.docker
		case r.option && noTrust && len(arrived[r.title]) == 0:
			tb.cells[at] = "closed, and to the trusted one"
		}
	}
	l.removeContainers()
}

// write puts the table between the markers. Ours come first.
func (tb *table) write(t *testing.T, path string) {
	if t.Failed() {
		return
	}
	slices.SortStableFunc(tb.columns, func(a, b string) int {
		ours := func(c string) bool { return strings.HasPrefix(c, "Portolan") }
		switch {
		case ours(a) && !ours(b):
			return -1
		case ours(b) && !ours(a):
			return 1
		case ours(a):
			return strings.Compare(b, a) // nftables first
		}
		return 0
	})
	var b strings.Builder
	fmt.Fprintf(&b, "| what must not arrive | %s |\n|---%s|\n", strings.Join(tb.columns, " | "), strings.Repeat("|---", len(tb.columns)))
	for _, title := range tb.titles {
		line := []string{title}
		for _, c := range tb.columns {
			line = append(line, tb.cells[[2]string{title, c}])
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(line, " | "))
	}
	before, after := aroundTable(t, path)
	text := fmt.Appendf(nil, "%s%s%s%s%s", before, closedBegin, b.String(), closedEnd, after)
	assert.NoError(t, os.WriteFile(path, text, 0o644))
}

// aroundTable is a file without what is between the markers.
func aroundTable(t *testing.T, path string) (before, after []byte) {
	t.Helper()
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	before, rest, begins := bytes.Cut(whole, []byte(closedBegin))
	_, after, ends := bytes.Cut(rest, []byte(closedEnd))
	require.True(t, begins && ends, "%s has no lines %q and %q", path, closedBegin, closedEnd)
	return before, after
}
