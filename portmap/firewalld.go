package portmap

import (
	"slices"

	"github.com/google/nftables"
)

// FirewalldRules says whether firewalld has rules on this host, as far as
// nftables tells (its default since 0.6): who has no D-Bus has no other way to
// know.
func FirewalldRules() bool {
	c, err := nftables.New()
	if err != nil {
		return false
	}
	tables, err := c.ListTables()
	return err == nil && slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == "firewalld" })
}
