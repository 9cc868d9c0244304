package main

import (
	"fmt"
	"strconv"
	"strings"
)

func section(title string, t table) string {
	return fmt.Sprintf("\n### %s\n\n%s", title, t)
}

// table is a Markdown table.
type table struct {
	head []string
	rows [][]string
}

// add adds a line; cells that are missing at its end are empty.
func (t *table) add(cells ...string) {
	t.rows = append(t.rows, append(cells, make([]string, len(t.head)-len(cells))...))
}

// String implements fmt.Stringer.
func (t table) String() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(t.head)
	fmt.Fprintf(&b, "|%s\n", strings.Repeat("---|", len(t.head)))
	for _, cells := range t.rows {
		line(cells)
	}
	return b.String()
}

// grouped writes 10000 as 10,000.
func grouped(n int) string {
	if n < 0 {
		return "-" + grouped(-n)
	}
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
