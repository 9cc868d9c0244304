package hooks

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	rtnl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/rtnetlink"
)

// resyncAfter is the pause before a list that failed is asked for again.
const resyncAfter = time.Second

// watcher keeps a map of this host's IPv6 addresses up to date.
type watcher struct {
	m     *ebpf.Map
	conn  *rtnl.Conn
	log   *slog.Logger
	known map[programsAddress]bool // of sync alone

	closing, ended chan struct{}
}

// watch fills m, and goes on doing so until Close.
func watch(m *ebpf.Map, log *slog.Logger) (*watcher, error) {
	conn, err := rtnl.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	w := &watcher{
		m: m, conn: conn, log: log, known: map[programsAddress]bool{},
		closing: make(chan struct{}), ended: make(chan struct{}),
	}
	if err = conn.JoinGroup(unix.RTNLGRP_IPV6_IFADDR); err == nil {
		err = w.sync()
	}
	if err != nil {
		return nil, fmt.Errorf("watch addresses: %w", errors.Join(err, conn.Close()))
	}
	go w.run()
	return w, nil
}

// run ends with Close. What a message says does not matter: that there is one,
// or that some were lost, means that the list has changed.
func (w *watcher) run() {
	defer close(w.ended)
	for {
		_, err := w.conn.Receive()
		if err == nil || errors.Is(err, unix.ENOBUFS) {
			err = w.sync()
		}
		select {
		case <-w.closing:
			return
		default:
		}
		for ; err != nil; err = w.sync() {
			w.log.Warn("list addresses of this host; tried again", "err", err)
			select {
			case <-w.closing:
				return
			case <-time.After(resyncAfter):
			}
		}
	}
}

// Close ends the goroutine.
func (w *watcher) Close() error {
	close(w.closing)
	err := w.conn.Close()
	<-w.ended
	return err
}

// sync makes the map what the kernel has.
func (w *watcher) sync() error {
	now, err := localAddresses()
	if err != nil {
		return err
	}
	for a := range now {
		if w.known[a] {
			continue
		}
		if err := w.m.Put(a, uint8(1)); err != nil {
			return fmt.Errorf("note address: %w", err)
		}
		w.known[a] = true
	}
	for a := range w.known {
		if now[a] {
			continue
		}
		if err := w.m.Delete(a); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget address: %w", err)
		}
		delete(w.known, a)
	}
	return nil
}

// localAddresses are this host's, but for those that mean something on one
// interface alone and those that duplicate address detection has not let through.
func localAddresses() (map[programsAddress]bool, error) {
	list, err := rtnetlink.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := map[programsAddress]bool{}
	for _, l := range list {
		a, ok := netip.AddrFromSlice(l.IP)
		if !ok || !a.Is6() || a.Is4In6() || a.IsLinkLocalUnicast() {
			continue
		}
		if l.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && l.Flags&unix.IFA_F_OPTIMISTIC == 0 {
			continue
		}
		out[address(a)] = true
	}
	return out, nil
}
