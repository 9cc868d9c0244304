// Package watch listens to the kernel for changes of what Portolan has made:
// interfaces and addresses, forwarding, nftables rules of whatever table.
//
// A Watcher says that something may have changed and, of rules, who did it. It
// never says what: whoever is told looks for himself. So nothing is lost when
// the kernel has to drop messages, as that too is told as a change. Of rules it
// hears one message a transaction, however large (NFT_MSG_NEWGEN), and only when
// asked to: with a listener, the kernel writes a message for each element of
// every transaction, which takes a third more time for 10,000 of them.
//
// There is no such word for other settings below /proc/sys, nor for iptables of
// the legacy variant. They have to be looked at by the clock.
package watch

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Config is for Open. The zero Config hears of every interface.
type Config struct {
	// Alias is what the alias of an interface begins with whose changes count
	// (ip link set … alias).
	Alias string
	// Port is what the name of a bridge port begins with whose flags count
	// (bridge link set …): what the kernel tells of them has no alias.
	Port string
	Log  *slog.Logger // nil is silent
}

// Change is what may have changed since the last one was taken.
type Change struct {
	Links   bool   // interfaces, their ports and addresses
	Forward bool   // forwarding, of the host or an interface
	Rules   bool   // nftables
	RulesBy string // who changed them last, as "nft (pid 812)"; this process is ""
}

func (c Change) any() bool { return c.Links || c.Forward || c.Rules }

// Watcher is two netlink sockets and a goroutine for each.
type Watcher struct {
	cfg   Config
	told  chan struct{}
	wg    sync.WaitGroup
	links *netlink.Conn
	rules *netlink.Conn

	mu      sync.Mutex // guards below
	pending Change
	hearing bool
	closed  bool
}

// Open begins to listen to what is not rules, in the network namespace of the
// calling thread. The error is the kernel's.
func Open(cfg Config) (*Watcher, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{cfg: cfg, told: make(chan struct{}, 1)}
	var err error
	w.links, err = netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err == nil {
		err = join(w.links, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	}
	if err == nil {
		w.rules, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
	}
	if err == nil {
		err = filter(w.rules, onlyGenerations())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen to changes in the kernel: %w", err), w.Close())
	}
	w.wg.Add(2)
	go w.hear(w.links, "interfaces", w.heardRoute)
	go w.hear(w.rules, "nftables", w.heardRules)
	return w, nil
}

func join(conn *netlink.Conn, groups ...uint32) error {
	for _, g := range groups {
		if err := conn.JoinGroup(g); err != nil {
			return fmt.Errorf("join netlink group %d: %w", g, err)
		}
	}
	return nil
}

func filter(conn *netlink.Conn, only []bpf.Instruction) error {
	raw, err := bpf.Assemble(only)
	if err != nil {
		return err
	}
	return conn.SetBPF(raw)
}

// HearRules begins or ends to listen to changes of rules, which is off at first.
// The kernel wants CAP_NET_ADMIN for it.
func (w *Watcher) HearRules(on bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || w.hearing == on {
		return nil
	}
	change := w.rules.LeaveGroup
	if on {
		change = w.rules.JoinGroup
	}
	if err := change(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("listen to changes of nftables: %w", err)
	}
	w.hearing = on
	return nil
}

// Told receives after each change, and once for several that nobody has taken.
func (w *Watcher) Told() <-chan struct{} { return w.told }

// Take returns what may have changed and forgets it.
func (w *Watcher) Take() Change {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.pending
	w.pending = Change{}
	return c
}

// Close ends both goroutines. It is idempotent.
func (w *Watcher) Close() error {
	w.mu.Lock()
	again := w.closed
	w.closed = true
	w.mu.Unlock()
	if again {
		return nil
	}
	var err error
	for _, conn := range []*netlink.Conn{w.links, w.rules} {
		if conn != nil {
			err = errors.Join(err, conn.Close())
		}
	}
	w.wg.Wait()
	return err
}

// hear ends when its socket is closed, or broken for good, which is said.
func (w *Watcher) hear(conn *netlink.Conn, what string, heard func(*Change, netlink.Message)) {
	defer w.wg.Done()
	for {
		msgs, err := conn.Receive()
		var c Change
		switch {
		case errors.Is(err, unix.ENOBUFS): // more than the socket holds
			c = Change{Links: true, Forward: true, Rules: true}
		case err != nil:
			if !w.isClosed() {
				w.cfg.Log.Error("no more news from the kernel; changes are found by the clock", "of", what, "err", err)
			}
			return
		}
		for _, m := range msgs {
			heard(&c, m)
		}
		w.tell(c)
	}
}

func (w *Watcher) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

func (w *Watcher) tell(c Change) {
	if !c.any() {
		return
	}
	w.mu.Lock()
	p := &w.pending
	p.Links, p.Forward, p.Rules = p.Links || c.Links, p.Forward || c.Forward, p.Rules || c.Rules
	if c.RulesBy != "" {
		p.RulesBy = c.RulesBy
	}
	w.mu.Unlock()
	select {
	case w.told <- struct{}{}:
	default: // told already
	}
}

// heardRoute is a message of rtnetlink.
func (w *Watcher) heardRoute(c *Change, m netlink.Message) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Data) < unix.SizeofIfInfomsg {
			return
		}
		attribute, prefix := uint16(unix.IFLA_IFALIAS), w.cfg.Alias
		if m.Data[0] == unix.AF_BRIDGE {
			attribute, prefix = unix.IFLA_IFNAME, w.cfg.Port
		}
		if strings.HasPrefix(linkText(m, attribute), prefix) {
			c.Links = true
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		c.Links = true
	case unix.RTM_NEWNETCONF:
		c.Forward = true
	}
}

// linkText is a text in a message of an interface, "" for none.
func linkText(m netlink.Message, attribute uint16) string {
	ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return ""
	}
	for ad.Next() {
		if ad.Type() == attribute {
			return ad.String()
		}
	}
	return ""
}
