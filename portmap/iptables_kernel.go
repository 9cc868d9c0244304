package portmap

import (
	"fmt"
	"slices"
	"strings"
)

// iptTables are the tables that we have chains in.
func iptTables(is4 bool) []string {
	if is4 {
		return []string{"raw", "nat", "filter"}
	}
	return []string{"nat", "filter"}
}

// read is every chain of our tables with its rules, built-in ones and those of
// others too. go-iptables lists one chain at a time; this is one process a
// table.
func (t *iptTool) read() (iptRuleset, error) {
	r := iptRuleset{}
	for _, table := range iptTables(t.is4) {
		out, err := t.run("", t.path, "-w", iptWait(), "-t", table, "-S")
		if err != nil {
			return nil, fmt.Errorf("list table %s: %w", table, err)
		}
		for line := range strings.Lines(out) {
			verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			name, rule, _ := strings.Cut(rest, " ")
			c := iptChain{table, name}
			switch verb {
			case "-P", "-N":
				r[c] = nil
			case "-A":
				r[c] = append(r[c], rule)
			}
		}
	}
	return r, nil
}

// ours is the part of what was read that is ours.
func (r iptRuleset) ours() iptRuleset {
	own := iptRuleset{}
	for c, rules := range r {
		if strings.HasPrefix(c.name, iptPrefix) && c != iptUser {
			own[c] = rules
		}
	}
	return own
}

// change makes want of have, which is what the kernel should hold. Only chains
// that differ are sent. If the kernel holds something else, all is made anew.
func (t *iptTool) change(have, want iptRuleset) error {
	sameJumps := !slices.ContainsFunc(iptJumps[:], func(j iptJump) bool { return have.wants(j) != want.wants(j) })
	if sameJumps && t.restore(iptRestoreText(have, want)) == nil {
		return nil
	}
	return t.sync(want)
}

// sync makes want of whatever the kernel holds.
func (t *iptTool) sync(want iptRuleset) error {
	have, err := t.read()
	if err != nil {
		return err
	}
	// First the chains, then the ways there, then what nobody leads to any more.
	stale := iptRuleset{}
	for c, rules := range have.ours() {
		if _, ok := want[c]; !ok {
			stale[c] = rules
		}
	}
	if err := t.ensureUser(have, len(want) > 0); err != nil {
		return err
	}
	if err := t.restore(iptRestoreText(nil, want)); err != nil {
		return err
	}
	if err := t.restore(iptJumpText(iptJumpEdits(have, want))); err != nil {
		return err
	}
	if err := t.restore(iptRestoreText(stale, nil)); err != nil {
		return err
	}
	t.removeUser(have, len(want) == 0)
	return nil
}

// iptRestoreText is what makes want of have, for iptables-restore --noflush.
func iptRestoreText(have, want iptRuleset) string {
	var b strings.Builder
	for _, table := range iptTables(true) {
		var lines []string
		for _, c := range want.chains() {
			rules, known := have[c]
			if c.table != table || known && slices.Equal(rules, want[c]) {
				continue
			}
			lines = append(lines, ":"+c.name+" - [0:0]") // made, or flushed
		}
		for _, c := range want.chains() {
			if rules, known := have[c]; c.table != table || known && slices.Equal(rules, want[c]) {
				continue
			}
			for _, rule := range want[c] {
				lines = append(lines, "-A "+c.name+" "+rule)
			}
		}
		var gone []string
		for _, c := range have.chains() {
			if _, wanted := want[c]; c.table == table && !wanted {
				gone = append(gone, c.name)
			}
		}
		for _, verb := range []string{"-F ", "-X "} { // they may lead to one another
			for _, name := range gone {
				lines = append(lines, verb+name)
			}
		}
		if len(lines) > 0 {
			fmt.Fprintf(&b, "*%s\n%s\nCOMMIT\n", table, strings.Join(lines, "\n"))
		}
	}
	return b.String()
}

// iptJumpEdit is one change of a built-in chain.
type iptJumpEdit struct {
	jump iptJump
	pos  int // to insert at; 0 to delete the first one, -1 to append
}

func (e iptJumpEdit) String() string {
	switch e.pos {
	case 0:
		return fmt.Sprintf("-D %s -j %s", e.jump.from, e.jump.to)
	case -1:
		return fmt.Sprintf("-A %s -j %s", e.jump.from, e.jump.to)
	}
	return fmt.Sprintf("-I %s %d -j %s", e.jump.from, e.pos, e.jump.to)
}

// iptJumpText is the edits for iptables-restore --noflush: a jump that moves is
// never away, even if this process is killed.
func iptJumpText(edits []iptJumpEdit) string {
	var b strings.Builder
	for _, table := range []string{"raw", "nat", "filter"} {
		var lines []string
		for _, e := range edits {
			if e.jump.table == table {
				lines = append(lines, e.String())
			}
		}
		if len(lines) > 0 {
			fmt.Fprintf(&b, "*%s\n%s\nCOMMIT\n", table, strings.Join(lines, "\n"))
		}
	}
	return b.String()
}

// iptJumpEdits make the jumps in the built-in chains right. Ours comes first
// in each, but in FORWARD right after that to DOCKER-USER, so that an
// administrator's rules there come before, and Docker's own after; the guard is
// last, as a policy is.
func iptJumpEdits(have, want iptRuleset) (edits []iptJumpEdit) {
	for _, j := range iptJumps {
		rules := have[iptChain{j.table, j.from}]
		there := iptPositions(rules, j.to)
		wanted := want.wants(j)
		pos := 1
		if j.from == "FORWARD" {
			if user := iptPositions(rules, "DOCKER-USER"); len(user) > 0 {
				pos = user[0] + 1
			}
		}
		var gone []iptJumpEdit
		for range there {
			gone = append(gone, iptJumpEdit{jump: j})
		}
		switch {
		case wanted && j.to == iptPrefix+"GUARD":
			if len(there) != 1 || there[0] != len(rules) {
				edits = append(append(edits, iptJumpEdit{j, -1}), gone...)
			}
			continue
		case wanted && len(there) == 1 && (pos == 1 || there[0] == pos):
			continue
		}
		switch {
		case !wanted:
			edits = append(edits, gone...)
		case slices.ContainsFunc(there, func(p int) bool { return p >= pos }):
			// Deleting takes the first one, so it has to be done before.
			pos -= len(slices.DeleteFunc(there, func(p int) bool { return p >= pos }))
			edits = append(append(edits, gone...), iptJumpEdit{j, pos})
		default:
			edits = append(append(edits, iptJumpEdit{j, pos}), gone...)
		}
	}
	return edits
}

// iptPositions are the numbers, from 1, of the rules that only jump to target.
func iptPositions(rules []string, target string) (at []int) {
	for i, rule := range rules {
		if rule == "-j "+target {
			at = append(at, i+1)
		}
	}
	return at
}
