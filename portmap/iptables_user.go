package portmap

import "fmt"

// iptUser is the chain for the administrator's own filter rules, to which our
// chain of FORWARD leads first. It is made where it is missing, and never
// flushed; it goes with the last network if it is empty.
var iptUser = iptChain{"filter", iptPrefix + "USER"}

// ensureUser makes the chain, of which have says whether it is there.
func (t *iptTool) ensureUser(have iptRuleset, wanted bool) error {
	if _, there := have[iptUser]; there || !wanted {
		return nil
	}
	if _, err := t.run("", t.path, "-w", iptWait(), "-t", iptUser.table, "-N", iptUser.name); err != nil {
		return fmt.Errorf("make chain %s: %w", iptUser.name, err)
	}
	return nil
}

// removeUser removes the chain if it is empty and nobody but us leads to it. The
// kernel refuses where that is not so any more.
func (t *iptTool) removeUser(have iptRuleset, unwanted bool) {
	if rules, there := have[iptUser]; unwanted && there && len(rules) == 0 {
		_, _ = t.run("", t.path, "-w", iptWait(), "-t", iptUser.table, "-X", iptUser.name)
	}
}
