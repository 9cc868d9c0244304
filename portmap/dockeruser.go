package portmap

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/portolan/portolan/internal/fault"
)

// DockerUserChain is Docker's chain for the administrator's rules, in the
// iptables table filter of each family.
const DockerUserChain = "DOCKER-USER"

// ensureTries is how often the rule is tried again in a row: what was listed may
// have been changed by the engine or the administrator a moment later.
const ensureTries = 3

// dockerUserComment marks our rule there, also where iptables-save and
// iptables-restore (iptables-persistent) have made it one of theirs.
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
	conn *nftConn
	log  *slog.Logger
	seen map[nftables.TableFamily]bool      // families that had the chain with a way to it
	away map[nftables.TableFamily]time.Time // since when it has been missing there
}

// wayAway is how long the way has to be missing: the engine itself takes it away
// and puts it back, in two steps, whenever a network is made.
const wayAway = 500 * time.Millisecond

func newDockerUser(conn *nftConn, log *slog.Logger) *dockerUser {
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
	rules, err := d.conn.kernelRules(table, DockerUserChain)
	if err != nil {
		return false, err
	}
	var ours, live []kernelRule // live: those that a packet can come to
	var next *kernelRule        // the RETURN that ends them
	for _, r := range rules {
		if r.comment() == dockerUserComment {
			ours = append(ours, r)
		}
		if next == nil && r.isPlain(expr.Verdict{Kind: expr.VerdictReturn}) {
			next = &r
		}
		if next == nil {
			live = append(live, r)
		}
	}
	placed := len(live) > 0 && live[len(live)-1].comment() == dockerUserComment
	if wanted && placed && len(ours) == 1 || !wanted && len(ours) == 0 {
		if led {
			return true, d.conn.Flush()
		}
		return false, nil
	}
	for _, r := range ours {
		if err := d.conn.DelRule(&nftables.Rule{Table: table, Chain: chain, Handle: r.handle}); err != nil {
			return false, err
		}
	}
	if wanted {
		rule := dockerUserRule(table, chain)
		if next != nil {
			rule.Position = next.handle
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
	rules, err := d.conn.kernelRules(table, forward.Name)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(rules, kernelRule.leadsToDockerUser) {
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

func (r kernelRule) leadsToDockerUser() bool {
	return slices.ContainsFunc(r.exprs, func(e kernelExpr) bool {
		v, ok := e.verdict()
		return ok && v.Kind == expr.VerdictJump && v.Chain == DockerUserChain
	})
}

func drops(c *nftables.Chain) bool {
	return c != nil && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
}

// isPlain matches a rule that is v without a condition.
func (r kernelRule) isPlain(v expr.Verdict) bool {
	for _, e := range r.exprs {
		if e.name == "counter" {
			continue
		}
		got, ok := e.verdict()
		return ok && got == v
	}
	return false
}
