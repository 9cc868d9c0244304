package systemd

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// DefaultMax is how many sockets are stored at most: the FileDescriptorStoreMax of
// dist/portolan.service.
const DefaultMax = 4096

// scmMax is how many descriptors go into one message (SCM_MAX_FD).
const scmMax = 253

// namePrefix begins the names of what is stored; a number follows.
const namePrefix = "ports-"

// Socket lends its descriptor. A closed one does not, or gives an error.
type Socket = interface {
	Control(do func(fd uintptr)) error
}

// StoreConfig is what a Store needs.
type StoreConfig struct {
	Notifier *Notifier
	// Inherited are the sockets that this process was started with, which the
	// Store owns from here on.
	Inherited []*File
	// Max is how many sockets are stored at most.
	Max int
	// KeptBack says which descriptors are not for this: a copy is open while it
	// is sent. nil means none.
	KeptBack func(fd int) bool
	Log      *slog.Logger // nil is silent
}

// Store is systemd's file descriptor store. Its methods are safe for concurrent
// use.
type Store struct {
	cfg StoreConfig

	mu        sync.Mutex       // guards below; held over sends, which wait a second at most
	inherited map[uint64]*File // that nobody has claimed, by cookie
	groups    map[Socket]*group
	waiting   []Socket // to be sent, and some that are not wanted any more
	gone      []string // names to be removed
	next      int      // number of the next name
	full      bool     // said
}

// group is the sockets of one message.
type group struct {
	name    string
	members []Socket
}

// unsent is the group of sockets that wait.
var unsent = &group{}

// NewStore returns a Store that has what was inherited.
func NewStore(cfg StoreConfig) *Store {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, inherited: map[uint64]*File{}, groups: map[Socket]*group{}}
	named := map[string]*group{}
	for _, f := range cfg.Inherited {
		c, err := cookie(f)
		if err != nil || s.inherited[c] != nil {
			s.gone = append(s.gone, f.Name) // no socket, or twice
			_ = f.Close()
			continue
		}
		g := named[f.Name]
		if g == nil {
			g = &group{name: f.Name}
			named[f.Name] = g
		}
		g.members = append(g.members, f)
		f.cookie = c
		s.groups[f], s.inherited[c] = g, f
		if n, err := strconv.Atoi(strings.TrimPrefix(f.Name, namePrefix)); err == nil {
			s.next = max(s.next, n+1)
		}
	}
	// With a name goes all that has it.
	for _, name := range s.gone {
		if g := named[name]; g != nil {
			s.ungroup(g)
		}
	}
	return s
}

// Max is how many sockets systemd keeps for this process, as it says (systemd 254)
// or the unit does: 0 is none.
func Max() int {
	n, err := strconv.Atoi(os.Getenv("FDSTORE"))
	if err != nil {
		return 0
	}
	return max(n, 0)
}

var errNoFile = errors.New("it has no file descriptor")

// cookie is the kernel's number of a socket, which is never used again.
func cookie(s Socket) (c uint64, err error) {
	failed := errNoFile
	err = s.Control(func(fd uintptr) { c, failed = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) })
	return c, errors.Join(err, failed)
}

// Inherited are the sockets that an earlier process left and nobody has put since.
// They stay the Store's: whoever wants one makes a copy of it, and puts that.
func (s *Store) Inherited() []Socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Socket, 0, len(s.inherited))
	for _, f := range s.inherited {
		all = append(all, f)
	}
	return all
}

// Put stores sockets. Those that are stored, and those that have no descriptor,
// are left alone; an inherited one is stored already, and is from now on s's copy
// of it. It never waits and never fails: what finds no room in systemd's queue is
// sent by Flush, and what is too many is not stored.
func (s *Store) Put(sockets []Socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sock := range sockets {
		if s.groups[sock] != nil {
			continue
		}
		c, err := cookie(sock)
		if err != nil {
			continue
		}
		if f := s.inherited[c]; f != nil {
			s.claim(f, sock)
			delete(s.inherited, c)
			continue
		}
		if len(s.groups) >= s.cfg.Max {
			if !s.full {
				s.full = true
				s.cfg.Log.Info("systemd keeps no more sockets over a restart (FileDescriptorStoreMax); other ports are not held meanwhile", "max", s.cfg.Max)
			}
			continue
		}
		s.wait(sock)
	}
	_ = s.flush(unix.MSG_DONTWAIT) // Flush says it
}

func (s *Store) wait(sock Socket) {
	s.groups[sock] = unsent
	s.waiting = append(s.waiting, sock)
}

// claim has a copy take the place of an inherited socket.
func (s *Store) claim(f *File, sock Socket) {
	g := s.groups[f]
	delete(s.groups, f)
	if g == unsent {
		s.wait(sock)
	} else {
		g.members[slices.Index(g.members, Socket(f))] = sock
		s.groups[sock] = g
	}
	_ = f.Close()
}

// Remove takes sockets out of the store, whether they are open still or not; of
// those that are not in it, nothing happens. When it returns, systemd does not
// hold them any more, or has not answered for some seconds, which is logged, and
// Flush tries again.
func (s *Store) Remove(sockets []Socket) {
	s.mu.Lock()
	changed := false
	for _, sock := range sockets {
		changed = s.drop(sock) || changed
	}
	if !changed {
		s.mu.Unlock()
		return
	}
	err := s.flush(0)
	s.mu.Unlock()
	if err == nil {
		err = s.cfg.Notifier.barrier()
	}
	if err != nil {
		s.cfg.Log.Warn("systemd may hold sockets of ports that are given back", "err", err)
	}
}

// drop forgets a socket. The rest of its group is to be stored anew.
func (s *Store) drop(sock Socket) (stored bool) {
	if f, ok := sock.(*File); ok {
		delete(s.inherited, f.cookie)
		_ = f.Close()
	}
	g := s.groups[sock]
	if g != nil && g != unsent {
		s.gone = append(s.gone, g.name)
		s.ungroup(g)
		stored = true
	}
	delete(s.groups, sock)
	return stored
}

func (s *Store) ungroup(g *group) {
	for _, m := range g.members {
		s.wait(m)
	}
}

// Settle removes what was inherited and has not been put since.
func (s *Store) Settle() {
	if rest := s.Inherited(); len(rest) > 0 {
		s.cfg.Log.Info("sockets of an earlier process are not wanted any more", "count", len(rest))
		s.Remove(rest)
	}
}

// Flush sends what could not be sent before. It is for a task that calls it every
// few seconds.
func (s *Store) Flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flush(unix.MSG_DONTWAIT)
}

// flush removes names first: systemd does not store what it has.
func (s *Store) flush(flags int) error {
	for len(s.gone) > 0 {
		if err := s.cfg.Notifier.send(flags, nil, "FDSTOREREMOVE=1", "FDNAME="+s.gone[0]); err != nil {
			return fmt.Errorf("take sockets back: %w", err)
		}
		s.gone = s.gone[1:]
	}
	for len(s.waiting) > 0 {
		if err := s.sendSome(); err != nil {
			return fmt.Errorf("store sockets: %w", err)
		}
	}
	return nil
}

// sendSome stores as many of those that wait as go into a message.
func (s *Store) sendSome() error {
	g := &group{name: namePrefix + strconv.Itoa(s.next)}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	n := 0 // of those that wait
	for ; n < len(s.waiting) && len(fds) < scmMax; n++ {
		if s.groups[s.waiting[n]] != unsent {
			continue // not wanted any more
		}
		fd, err := s.copyOf(s.waiting[n])
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			if len(fds) == 0 {
				return err
			}
			break
		}
		if err != nil { // closed meanwhile
			delete(s.groups, s.waiting[n])
			continue
		}
		fds, g.members = append(fds, fd), append(g.members, s.waiting[n])
	}
	if len(fds) > 0 {
		// FDPOLL=0: systemd is not to look whether they have ended.
		if err := s.cfg.Notifier.send(unix.MSG_DONTWAIT, fds, "FDSTORE=1", "FDNAME="+g.name, "FDPOLL=0"); err != nil {
			return err
		}
		s.next++
		for _, m := range g.members {
			s.groups[m] = g
		}
	}
	if s.waiting = s.waiting[n:]; len(s.waiting) == 0 {
		s.waiting = nil
	}
	return nil
}

// copyOf is a descriptor of the same socket, for a moment.
func (s *Store) copyOf(sock Socket) (fd int, err error) {
	failed := errNoFile
	err = sock.Control(func(of uintptr) { fd, failed = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, failed); err != nil {
		return -1, err
	}
	if s.cfg.KeptBack != nil && s.cfg.KeptBack(fd) {
		return -1, errors.Join(unix.EMFILE, unix.Close(fd))
	}
	return fd, nil
}
