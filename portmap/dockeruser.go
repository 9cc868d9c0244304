package portmap

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"

	"github.com/portolan/portolan/internal/fault"
)

// DockerUserChain is Docker's chain for the administrator's rules, in the
// iptables table filter of each family.
const DockerUserChain = "DOCKER-USER"

// ensureTries is how often the rule is tried again in a row: what was listed may
// have been changed by the engine or the administrator a moment later.
const ensureTries = 3

// dockerUserComment marks our rule there.
const dockerUserComment = "portolan: accepted by table inet portolan"

// dockerUser keeps one rule in DOCKER-USER of each family that has it: packets
// that our forward chain accepted, and marked, pass Docker's DROP policy. It
// stands behind the user's rules, so that their DROP wins, and before the RETURN
// that engines up to 28 end the chain with; what `iptables -A` puts behind that
// no packet comes to. It matches no interface: an accept by
// interface there would open Docker's own containers, whose isolation comes
// later in the chain.
//
// The rule is a native one over netlink; iptables-nft lists it. Hosts whose
// Docker uses iptables-legacy are served by the iptables mapper.
//
// A flush of the table (iptables -F, or firewalld's end) takes the way to the
// chain along, or the chain too, and leaves the policy. Both are put back, as
// Docker would make them.
type dockerUser struct {
	conn *nftables.Conn
	log  *slog.Logger
	seen map[nftables.TableFamily]bool      // families that had the chain with a way to it
	away map[nftables.TableFamily]time.Time // since when it has been missing there
}

// wayAway is how long the way has to be missing: the engine itself takes it away
// and puts it back, in two steps, whenever a network is made.
const wayAway = 500 * time.Millisecond

func newDockerUser(conn *nftables.Conn, log *slog.Logger) *dockerUser {
	return &dockerUser{conn, log, map[nftables.TableFamily]bool{}, map[nftables.TableFamily]time.Time{}}
}

// ensure puts the rule where it belongs, or takes it away, in both families, and
// says whether it had to. A family without the chain has nothing to let through.
func (d *dockerUser) ensure(wanted bool) (changed bool, err error) {
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		c, err := d.ensureFamily(family, wanted)
		for try := 1; err != nil && try < ensureTries; try++ {
			c, err = d.ensureFamily(family, wanted)
		}
		if err != nil {
			return changed, fmt.Errorf("keep the rule of chain %s: %w", DockerUserChain, err)
		}
		changed = changed || c
	}
	return changed, nil
}

func (d *dockerUser) ensureFamily(family nftables.TableFamily, wanted bool) (changed bool, err error) {
	chains, err := d.conn.ListChainsOfTableFamily(family)
	if err != nil {
		return false, err
	}
	var chain, forward *nftables.Chain
	for _, c := range chains {
		switch {
		case c.Table.Name != "filter":
		case c.Name == DockerUserChain:
			chain = c
		case c.Name == "FORWARD":
			forward = c
		}
	}
	table := &nftables.Table{Name: "filter", Family: family}
	if chain == nil {
		if !d.missesWay(family, forward, wanted) {
			return false, nil
		}
		chain = d.conn.AddChain(&nftables.Chain{Name: DockerUserChain, Table: table})
		d.conn.InsertRule(wayToDockerUser(table, forward))
		d.conn.AddRule(dockerUserRule(table, chain))
		return true, d.conn.Flush()
	}
	led, err := d.leadThere(family, table, forward, wanted)
	if err != nil {
		return false, err
	}
	rules, err := d.conn.GetRules(table, chain)
	if err != nil {
		return false, err
	}
	var ours, live []*nftables.Rule // live: those that a packet can come to
	var next *nftables.Rule         // the RETURN that ends them
	for _, r := range rules {
		if isDockerUserRule(r) {
			ours = append(ours, r)
		}
		if next == nil && isPlainReturn(r) {
			next = r
		}
		if next == nil {
			live = append(live, r)
		}
	}
	placed := len(live) > 0 && isDockerUserRule(live[len(live)-1])
	if wanted && placed && len(ours) == 1 || !wanted && len(ours) == 0 {
		if led {
			return true, d.conn.Flush()
		}
		return false, nil
	}
	for _, r := range ours {
		if err := d.conn.DelRule(r); err != nil {
			return false, err
		}
	}
	if wanted {
		rule := dockerUserRule(table, chain)
		if next != nil {
			rule.Position = next.Handle
			d.conn.InsertRule(rule)
		} else {
			d.conn.AddRule(rule)
		}
	}
	err = d.conn.Flush()
	fault.Point("docker-user set")
	return true, err
}

// leadThere queues the way from FORWARD to the chain, which Docker makes, where
// it was there before and is not any more, and says whether it had to.
func (d *dockerUser) leadThere(family nftables.TableFamily, table *nftables.Table, forward *nftables.Chain, wanted bool) (bool, error) {
	if forward == nil {
		return false, nil
	}
	rules, err := d.conn.GetRules(table, forward)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(rules, leadsToDockerUser) {
		d.seen[family] = true
		delete(d.away, family)
		return false, nil
	}
	if !d.missesWay(family, forward, wanted) {
		return false, nil
	}
	d.conn.InsertRule(wayToDockerUser(table, forward))
	return true, nil
}

// missesWay says whether the way was there, is needed, and has been missing for
// long enough.
func (d *dockerUser) missesWay(family nftables.TableFamily, forward *nftables.Chain, wanted bool) bool {
	if !wanted || !d.seen[family] || !drops(forward) {
		delete(d.away, family)
		return false
	}
	if d.away[family].IsZero() {
		d.away[family] = time.Now()
	}
	return time.Since(d.away[family]) >= wayAway
}

// waits says whether there is something to look at again soon.
func (d *dockerUser) waits() bool { return len(d.away) > 0 }

func dockerUserRule(table *nftables.Table, chain *nftables.Chain) *nftables.Rule {
	return &nftables.Rule{
		Table: table, Chain: chain,
		Exprs:    nftRule{stmtMarked(MarkBit), {"", []expr.Any{&expr.Counter{}}}, stmtAccept}.exprs(),
		UserData: userdata.AppendString(nil, userdata.TypeComment, dockerUserComment),
	}
}

// wayToDockerUser is what `iptables -I FORWARD -j DOCKER-USER` makes.
func wayToDockerUser(table *nftables.Table, forward *nftables.Chain) *nftables.Rule {
	return &nftables.Rule{Table: table, Chain: forward, Exprs: []expr.Any{
		&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: DockerUserChain},
	}}
}

func leadsToDockerUser(r *nftables.Rule) bool {
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		v, ok := e.(*expr.Verdict)
		return ok && v.Kind == expr.VerdictJump && v.Chain == DockerUserChain
	})
}

func drops(c *nftables.Chain) bool {
	return c != nil && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
}

// isDockerUserRule knows our rule by its comment, also where iptables-save and
// iptables-restore (iptables-persistent) have made it one of theirs.
func isDockerUserRule(r *nftables.Rule) bool {
	if s, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok && s == dockerUserComment {
		return true
	}
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		m, ok := e.(*expr.Match)
		if !ok || m.Name != "comment" {
			return false
		}
		text, ok := m.Info.(*xt.Comment)
		return ok && string(*text) == dockerUserComment
	})
}

// isPlainReturn matches `-j RETURN` without a condition.
func isPlainReturn(r *nftables.Rule) bool {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Verdict:
			return e.Kind == expr.VerdictReturn
		default:
			return false
		}
	}
	return false
}
