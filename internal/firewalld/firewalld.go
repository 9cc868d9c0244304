// Package firewalld puts interfaces into a zone of firewalld, over D-Bus.
//
// On hosts with firewalld, a forwarded packet has to be accepted by it as well
// as by our own rules. What was translated to a published port is; what a
// container sends to other hosts is rejected, unless its bridge is in a zone
// whose target is ACCEPT. Docker puts its own bridges into a zone of that kind
// and so does Zones: into the one named docker, which Docker makes, or, where
// there is none, into trusted, which every firewalld has. Nothing permanent is
// changed. What our rules close stays closed: a packet needs both.
//
// An interface that somebody has put into another zone is left there.
package firewalld

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// D-Bus names of firewalld, as in firewalld.dbus(5).
const (
	busName    = "org.fedoraproject.FirewallD1"
	objectPath = dbus.ObjectPath("/org/fedoraproject/FirewallD1")
	zoneMethod = busName + ".zone."
	reloaded   = busName + ".Reloaded"
	ownerMoved = "org.freedesktop.DBus.NameOwnerChanged"
)

// The zones that are tried, in this order.
var zones = [...]string{"docker", "trusted"}

const (
	dialWithin  = 2 * time.Second
	callWithin  = 3 * time.Second // firewalld answers no call while it reloads
	settleWait  = 10 * time.Second
	retryEvery  = 5 * time.Second
	signalQueue = 16
)

// errDeaf is of the bus, or firewalld.
var errDeaf = errors.New("firewalld answers nobody")

// Config is for Open. Every field may be zero.
type Config struct {
	Log *slog.Logger // nil is silent
	// Present says whether firewalld has rules on this host. It is asked where
	// there is no D-Bus to ask firewalld itself: then the log has a line that an
	// administrator can run.
	Present func() bool
}

// Zones keeps interfaces in a zone. Its methods are safe for concurrent use, and
// do nothing where there is no firewalld.
type Zones struct {
	cfg Config
	bus bool // there was one at first

	mu     sync.Mutex // guards below; held over calls, which it orders
	conn   *dbus.Conn // nil where there is none
	wanted map[string]bool
	known  map[string]string // to the zone that the log has it in
	hinted map[string]bool
	deaf   bool // the last call got no answer

	late chan struct{} // Add could not

	settleWait time.Duration

	asking sync.Mutex // guards below; held while Settle waits
	asked  *dbus.Call // not answered yet
}

// Open asks for the system bus, once. A host without one has no firewalld that
// could be talked to, which is no error.
func Open(cfg Config) *Zones {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	z := &Zones{cfg: cfg, late: make(chan struct{}, 1), wanted: map[string]bool{}, known: map[string]string{}, hinted: map[string]bool{}, settleWait: settleWait}
	conn, err := dial()
	if err != nil {
		cfg.Log.Debug("no D-Bus, and so no way to ask firewalld", "err", err)
		return z
	}
	z.conn, z.bus = conn, true
	return z
}

// dial connects to the system bus and asks for the signals that count.
func dial() (*dbus.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	late := time.AfterFunc(dialWithin, cancel) // ends the connection, too
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err == nil {
		err = errors.Join(
			conn.AddMatchSignal(dbus.WithMatchInterface(busName), dbus.WithMatchMember("Reloaded")),
			conn.AddMatchSignal(dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, busName)))
	}
	if err == nil && !late.Stop() {
		err = context.DeadlineExceeded
	}
	if err != nil {
		cancel()
		if conn != nil {
			err = errors.Join(err, conn.Close())
		}
		return nil, fmt.Errorf("connect to the system bus: %w", err)
	}
	return conn, nil
}

// Add puts an interface into the zone, now and whenever firewalld has forgotten
// it. The error is firewalld's; it is tried again.
func (z *Zones) Add(name string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.wanted[name] = true
	if z.conn == nil {
		z.hintLocked(name)
		return nil
	}
	var err error
	if !z.deaf { // else one has waited already
		err = z.placeLocked(name)
	}
	if err != nil || z.deaf {
		select {
		case z.late <- struct{}{}:
		default: // Run is told already
		}
	}
	return err
}

// hintLocked is for who has no D-Bus, as the managed plugin: it says once what
// would do.
func (z *Zones) hintLocked(name string) {
	if z.bus || z.hinted[name] || z.cfg.Present == nil || !z.cfg.Present() {
		return
	}
	z.hinted[name] = true
	z.cfg.Log.Warn("this host has firewalld, which Portolan cannot reach from here: containers do not reach other hosts before their bridge is in a zone that forwards",
		"interface", name, "run", Command(name))
}

// Command is what an administrator runs to put an interface into the zone, now
// and for good.
func Command(name string) string {
	return fmt.Sprintf("firewall-cmd --zone=docker --add-interface=%s && firewall-cmd --permanent --zone=docker --add-interface=%[1]s", name)
}

// Remove takes an interface, which need not exist any more, out of the zones
// that Add puts one into. What is in another zone, or permanent, stays.
func (z *Zones) Remove(name string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.wanted, name)
	delete(z.known, name)
	if z.conn == nil || !z.runsLocked() {
		return nil
	}
	var zone string
	if err := z.callLocked("getZoneOfInterface", []any{&zone}, name); err != nil || !slices.Contains(zones[:], zone) {
		return err
	}
	return z.callLocked("removeInterface", nil, zone, name)
}

// placeLocked puts an interface into the zone if it is in none.
func (z *Zones) placeLocked(name string) error {
	if !z.runsLocked() {
		return nil
	}
	var zone string
	if err := z.callLocked("getZoneOfInterface", []any{&zone}, name); err != nil {
		return err
	}
	if zone != "" {
		if z.known[name] != zone {
			z.known[name] = zone
			z.cfg.Log.Info("an interface is in a zone of firewalld already", "interface", name, "zone", zone)
		}
		return nil
	}
	var known []string
	if err := z.callLocked("getZones", []any{&known}); err != nil {
		return err
	}
	for _, zone = range zones {
		if slices.Contains(known, zone) {
			break
		}
	}
	if err := z.callLocked("addInterface", nil, zone, name); err != nil {
		return err
	}
	z.known[name] = zone
	z.cfg.Log.Info("put an interface into a zone of firewalld", "interface", name, "zone", zone)
	return nil
}

// runsLocked says whether firewalld is on the bus. It is not to be started.
func (z *Zones) runsLocked() bool {
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	var has bool
	err := z.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, busName).Store(&has)
	z.deaf = errors.Is(err, context.DeadlineExceeded)
	return err == nil && has
}

func (z *Zones) callLocked(method string, reply []any, args ...any) error {
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	call := z.conn.Object(busName, objectPath).CallWithContext(ctx, zoneMethod+method, dbus.FlagNoAutoStart, args...)
	err := call.Err
	z.deaf = errors.Is(err, context.DeadlineExceeded)
	if err == nil && reply != nil {
		err = call.Store(reply...)
	}
	if err != nil {
		return fmt.Errorf("ask firewalld to %s%v: %w", method, args, err)
	}
	return nil
}

// Settle waits until firewalld has ended what it does. While it loads its rules
// it answers nobody, and who writes iptables rules meanwhile makes the programs
// that it runs fail, and the reload with them. Where it is stuck, one caller
// waits, for 10 s, and those after that do not.
func (z *Zones) Settle() {
	z.mu.Lock()
	conn := z.conn
	z.mu.Unlock()
	if conn == nil {
		return
	}
	z.asking.Lock()
	defer z.asking.Unlock()
	if z.asked != nil {
		select {
		case <-z.asked.Done:
		default:
			return
		}
	}
	z.asked = conn.Object(busName, objectPath).Go(zoneMethod+"getZones", dbus.FlagNoAutoStart, make(chan *dbus.Call, 1))
	late := time.NewTimer(z.settleWait)
	defer late.Stop()
	select {
	case <-z.asked.Done:
		z.asked = nil
	case <-late.C:
		z.cfg.Log.Warn("firewalld answers nobody; rules are repaired without waiting for it", "after", z.settleWait)
	}
}

// Run follows firewalld until ctx ends: after a reload, a restart or a start it
// has forgotten what it was told. Where there was no bus at first it does
// nothing; one that goes away is looked for again.
func (z *Zones) Run(ctx context.Context) error {
	if !z.bus {
		return nil
	}
	for {
		z.mu.Lock()
		conn := z.conn
		z.mu.Unlock()
		if conn != nil {
			z.follow(ctx, conn)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryEvery):
		}
		if conn, err := dial(); err == nil {
			z.mu.Lock()
			z.conn = conn
			z.mu.Unlock()
		}
	}
}

// follow ends with the connection, or ctx.
func (z *Zones) follow(ctx context.Context, conn *dbus.Conn) {
	signals := make(chan *dbus.Signal, signalQueue)
	conn.Signal(signals)
	defer conn.RemoveSignal(signals)
	var again <-chan time.Time
	said := ""
	for {
		err := z.placeAll()
		again = nil
		if err != nil {
			again = time.After(retryEvery)
			if text := err.Error(); text != said {
				said = text
				z.cfg.Log.Warn("firewalld does not take an interface into a zone; it is tried again", "every", retryEvery, "err", err)
			}
		}
		for wait := true; wait; {
			select {
			case <-ctx.Done():
				return
			case <-conn.Context().Done():
				z.mu.Lock()
				z.conn = nil
				z.mu.Unlock()
				return
			case <-again:
				wait = false
			case <-z.late:
				again = time.After(retryEvery)
			case s, ok := <-signals:
				wait = ok && !counts(s)
			}
		}
	}
}

// counts says whether firewalld may have forgotten what it was told.
func counts(s *dbus.Signal) bool {
	switch s.Name {
	case reloaded:
		return true
	case ownerMoved:
		var name, old, now string
		return dbus.Store(s.Body, &name, &old, &now) == nil && name == busName && now != ""
	}
	return false
}

func (z *Zones) placeAll() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	var errs []error
	for name := range z.wanted {
		if z.conn == nil {
			break
		}
		if errs = append(errs, z.placeLocked(name)); z.deaf {
			errs = append(errs, errDeaf) // nor will it answer the others
			break
		}
	}
	return errors.Join(errs...)
}

// Close ends the connection.
func (z *Zones) Close() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	conn := z.conn
	z.conn = nil
	if conn == nil {
		return nil
	}
	return conn.Close()
}
