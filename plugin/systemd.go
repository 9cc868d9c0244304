package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/sklookup"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/internal/systemd"
	"github.com/portolan/portolan/portmap"
)

// How often systemd is told how the daemon fares, where that has changed.
const tellEvery = 2 * time.Second

// notifyReady tells systemd, where that started us (Type=notify).
func notifyReady(log *slog.Logger) {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("systemd does not know that we are ready", "err", err)
	}
}

// tell tells systemd something that is no harm if it is lost.
func tell(log *slog.Logger, lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		log.Debug("tell systemd", "err", err)
	}
}

// unit is the daemon as a unit of systemd's. The zero unit is that of a daemon
// which somebody else has started.
type unit struct {
	socket *systemd.File  // that systemd listens on, or nil
	store  *systemd.Store // nil: sockets end with the process
	ranges *systemd.Named // nil: so do long ranges that programs hold
}

// openUnit takes what systemd has started this process with.
func openUnit(log *slog.Logger) (u unit, err error) {
	files, err := systemd.Inherit()
	if err != nil {
		return unit{}, err
	}
	var kept, ofRanges []*systemd.File
	for _, f := range files {
		switch {
		case strings.HasPrefix(f.Name, sklookup.KeptPrefix):
			ofRanges = append(ofRanges, f)
		case !listensLocally(f):
			kept = append(kept, f)
		case u.socket != nil:
			return unit{}, fmt.Errorf("systemd has more than one socket for this service, %s and %s; one is the driver's", u.socket.Name, f.Name)
		default:
			u.socket = f
		}
	}
	room := systemd.StoreSize()
	if room >= systemd.StoreFiles+sklookup.KeptMost || len(ofRanges) > 0 {
		u.ranges = systemd.NewNamed(ofRanges)
	}
	if room < systemd.StoreFiles && len(kept) == 0 {
		return u, nil
	}
	if u.store, err = systemd.OpenStore(kept, log); err != nil {
		log.Warn("ports may be taken by others while this daemon is restarted", "err", err)
	}
	return u, nil
}

// listensLocally says whether a file is a unix socket that listens.
func listensLocally(f *systemd.File) (yes bool) {
	_ = f.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		listens, err2 := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		yes = err == nil && err2 == nil && domain == unix.AF_UNIX && listens == 1
	})
	return yes
}

// listen is systemd's socket where there is one, else one of our own at that path.
func (u unit) listen(path string) (*net.UnixListener, error) {
	if u.socket == nil {
		return listenSocket(path, ownerOnly)
	}
	defer u.socket.Close() // the listener has a copy
	var ln net.Listener
	failed := os.ErrClosed
	err := u.socket.Control(func(fd uintptr) {
		var own int
		if own, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); failed != nil {
			return
		}
		f := os.NewFile(uintptr(own), u.socket.Name)
		defer f.Close()
		ln, failed = net.FileListener(f)
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("listen on systemd's socket: %w", err)
	}
	local, ok := ln.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listen on systemd's socket: it is a %T", ln), ln.Close())
	}
	if at := local.Addr().String(); !sameSocket(at, path) {
		return nil, errors.Join(fmt.Errorf("systemd listens on %s (%s), and --socket is %s: make them the same, or disable the socket unit",
			at, u.socket.Name, path), ln.Close())
	}
	return local, nil
}

// forPublisher is a nil interface where there is none.
func (u unit) forPublisher() portmap.FDStore {
	if u.store == nil {
		return nil
	}
	return u.store
}

// forRanges is a nil interface where there is none.
func (u unit) forRanges() sklookup.Keeper {
	if u.ranges == nil {
		return nil
	}
	return u.ranges
}

func (u unit) Close() error {
	var err error
	if u.ranges != nil {
		err = u.ranges.Close()
	}
	if u.store != nil {
		err = errors.Join(err, u.store.Close())
	}
	return err
}

// told is a task's memory of what systemd shows in `systemctl status`.
type told struct {
	last string
	log  *slog.Logger
}

// status tells systemd what the daemon serves, and what is wrong, where that has
// changed.
func (t *told) status(st *store.Store, well *health) {
	var endpoints, ports int
	for _, ep := range st.Endpoints() {
		if !ep.Gone.IsZero() || !ep.Gateway || len(ep.Mappings) == 0 {
			continue
		}
		endpoints++
		for _, m := range ep.Mappings {
			ports += m.Len()
		}
	}
	text := fmt.Sprintf("%s of %s", count(ports, "port"), count(endpoints, "endpoint"))
	if problems := well.problems(time.Now()); len(problems) > 0 {
		text += fmt.Sprintf("; %s: %s", count(len(problems), "problem"), problems[0])
	}
	if text != t.last {
		t.last = text
		tell(t.log, "STATUS="+text)
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// watchdog tells systemd that the daemon works, as long as it does: no task hangs,
// and whoever asks at the socket is answered. What a restart would not mend is no
// reason to be silent.
type watchdog struct {
	socket string
	within time.Duration // of an answer
	well   *health
	log    *slog.Logger
}

// watchdogEvery is how often systemd wants to hear from this process, 0 for never:
// four times within the unit's WatchdogSec.
func watchdogEvery() (time.Duration, error) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("watchdog of systemd: %w", err)
	}
	return limit / 4, nil
}

func (w watchdog) tell() error {
	if hanging := w.well.hanging(time.Now()); len(hanging) > 0 {
		return fmt.Errorf("systemd is going to restart this daemon: %s", strings.Join(hanging, "; "))
	}
	err := w.ask()
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
		return fmt.Errorf("systemd is going to restart this daemon: %w", err)
	}
	// A socket file that somebody has removed does not come back by a restart.
	tell(w.log, daemon.SdNotifyWatchdog)
	return err
}

// ask asks the daemon at its socket how it is, as a monitor would. Any answer will
// do.
func (w watchdog) ask() error {
	ctx, cancel := context.WithTimeout(context.Background(), w.within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://portolan/Plugin.Health", nil)
	if err != nil {
		return err
	}
	client := socketClient(w.socket)
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
