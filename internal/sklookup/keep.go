package sklookup

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Keeper keeps file descriptors open while no process of this program runs, for the
// one that comes next: systemd's store, which package systemd has as Named.
type Keeper interface {
	// Inherited are the descriptors that an earlier process left, by name. They are
	// the Keeper's: whoever wants one makes a copy.
	Inherited() map[string][]Descriptor
	// Put keeps descriptors under a name, beside those that are kept under it. One
	// that is kept already stays where it is, and closed ones are left out.
	Put(name string, what ...Descriptor) error
	// Remove lets go of what is kept under a name, which may be nothing. That
	// happens soon, not before it returns.
	Remove(name string) error
}

// Descriptor lends a file descriptor, which do must not close.
type Descriptor = interface {
	Control(do func(fd uintptr)) error
}

const (
	// KeptPrefix begins every name under which something is kept.
	KeptPrefix = "ranges-"
	// KeptMost is how many descriptors are kept at a time: three links and a map
	// for each of two processes, and four sockets.
	KeptMost = 12

	keptSockets   = KeptPrefix + "sockets"
	keptVariables = "-variables"
)

// succession has one process take over from another, without a moment in which what
// both hold is free.
//
// While a process holds ports its links are kept, under the name of its generation;
// beside them the map of its programs' variables, from when it has taken up what
// there was. Only then is what earlier ones held let go. So links without a map are of
// a process that was ended while it started, and hold a part of what others do.
type succession struct {
	keep Keeper // nil: what is held is free when the process ends
	log  *slog.Logger

	name      string       // of this generation
	links     []Descriptor // of this process
	variables Descriptor
	sockets   []Descriptor // that it opened last

	earlier []string // generations that hold ports until this one has settled
	kept    bool     // what this process holds is
	left    bool     // to the next process
}

// Forget ends what an earlier process holds, where no Table takes over.
func Forget(keep Keeper, log *slog.Logger) {
	s := succession{keep: keep, log: log}
	for name := range keep.Inherited() {
		if strings.HasSuffix(name, keptVariables) {
			continue
		}
		s.release(name)
	}
}

// inherit finds the earlier generations, and has their programs know who may bind.
func (s *succession) inherit(variables *ebpf.Map) {
	inherited := s.keep.Inherited()
	for _, name := range slices.Sorted(maps.Keys(inherited)) {
		if name == keptSockets || strings.HasSuffix(name, keptVariables) {
			continue
		}
		err := errors.New("the process was ended while it started")
		for _, theirs := range inherited[name+keptVariables] {
			err = teach(theirs, variables)
		}
		if err != nil {
			s.log.Info("the hold of an earlier process on ports is let go", "name", name, "why", err)
			s.release(name)
			continue
		}
		s.earlier = append(s.earlier, name)
	}
	if len(s.earlier) == 0 && len(inherited[keptSockets]) > 0 {
		s.remove(keptSockets)
	}
	for n := 0; s.name == "" || slices.Contains(s.earlier, s.name); n++ {
		s.name = fmt.Sprint(KeptPrefix, n)
	}
}

// teach gives an earlier process's programs the variables of this one's, which say
// who may bind what is held.
func teach(theirs Descriptor, variables *ebpf.Map) error {
	fd, err := duplicate(theirs)
	if err != nil {
		return err
	}
	m, err := ebpf.NewMapFromFD(fd)
	if err != nil {
		return err
	}
	defer m.Close()
	value := make([]byte, variables.ValueSize())
	if m.ValueSize() != variables.ValueSize() {
		return errors.New("its programs are another version's")
	}
	if err := variables.Lookup(uint32(0), value); err != nil {
		return err
	}
	return m.Put(uint32(0), value)
}

// release ends a generation, at once.
func (s *succession) release(name string) {
	for _, l := range s.keep.Inherited()[name] {
		if err := detach(l); err != nil {
			s.log.Warn("end an earlier process's hold on ports", "name", name, "err", err)
		}
	}
	// Without the map the links are none, if this process ends here.
	s.remove(name + keptVariables)
	s.remove(name)
}

func detach(d Descriptor) error {
	fd, err := duplicate(d)
	if err != nil {
		return err
	}
	l, err := link.NewFromFD(fd)
	if err != nil {
		return err
	}
	return errors.Join(l.Detach(), l.Close())
}

func (s *succession) put(name string, what ...Descriptor) bool {
	if err := s.keep.Put(name, what...); err != nil {
		s.log.Warn("ports may be taken by others while this process is restarted", "err", err)
		return false
	}
	return true
}

func (s *succession) remove(name string) {
	if err := s.keep.Remove(name); err != nil {
		s.log.Warn("an earlier process's hold on ports may stay", "name", name, "err", err)
	}
}

// follow has what this process holds kept from its first port on, to its last.
func (s *succession) follow(holds bool) {
	switch {
	case s.keep == nil || holds == s.kept:
	case holds:
		s.kept = s.put(s.name, s.links...) && (len(s.earlier) > 0 || s.put(s.name+keptVariables, s.variables)) &&
			s.put(keptSockets, s.sockets...)
	default:
		s.kept = false
		s.remove(s.name + keptVariables)
		s.remove(s.name)
		s.remove(keptSockets)
	}
}

// settle ends the earlier generations, now that this one has what is wanted of them.
func (s *succession) settle() {
	if len(s.earlier) == 0 {
		return
	}
	if s.kept {
		s.put(s.name+keptVariables, s.variables)
	} else {
		s.remove(keptSockets)
	}
	for _, name := range s.earlier {
		s.release(name)
	}
	s.earlier = nil
}

// keepSockets has sockets kept in place of those of before.
func (s *succession) keepSockets(sockets []Descriptor) {
	again := s.sockets != nil
	s.sockets = sockets
	if !s.kept {
		return
	}
	if again {
		s.remove(keptSockets)
	}
	s.put(keptSockets, sockets...)
}

// inheritedSockets are copies of the sockets that an earlier process left and this
// one has none of its own for, by socket_index of sklookup.bpf.c; nil is none. The
// caller closes them.
func (s *succession) inheritedSockets(netns uint64) (files [4]*os.File) {
	if s.keep == nil || s.sockets != nil {
		return files
	}
	for _, d := range s.keep.Inherited()[keptSockets] {
		fd, err := duplicate(d)
		if err != nil {
			s.log.Warn("a socket of an earlier process is lost", "err", err)
			continue
		}
		i, ok := indexOf(fd, netns)
		if !ok || files[i] != nil {
			_ = unix.Close(fd)
			continue
		}
		files[i] = os.NewFile(uintptr(fd), "inherited")
	}
	return files
}

func closeAll(files [4]*os.File) {
	for _, f := range files {
		_ = f.Close() // nil is an error, too
	}
}

// indexOf is a socket's socket_index, if it is one that Sockets opened.
func indexOf(fd int, netns uint64) (index int, ok bool) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil || cookie != netns {
		return 0, false
	}
	ask := func(option int) int {
		v, e := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
		err = errors.Join(err, e)
		return v
	}
	switch protocol, listens := ask(unix.SO_PROTOCOL), ask(unix.SO_ACCEPTCONN) == 1; {
	case protocol == unix.IPPROTO_TCP && listens:
	case protocol == unix.IPPROTO_UDP:
		index = 2
	default:
		return 0, false
	}
	switch ask(unix.SO_DOMAIN) {
	case unix.AF_INET:
	case unix.AF_INET6:
		index++
	default:
		return 0, false
	}
	return index, err == nil
}

func duplicate(d Descriptor) (fd int, err error) {
	failed := errors.New("no descriptor")
	err = d.Control(func(of uintptr) { fd, failed = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, failed)
}

// heldFD is a descriptor that is open as long as the Table is.
type heldFD int

// Control implements Descriptor.
func (f heldFD) Control(do func(fd uintptr)) error {
	do(uintptr(f))
	return nil
}

// socketOf is a socket that somebody else closes.
type socketOf struct{ syscall.Conn }

// Control implements Descriptor.
func (s socketOf) Control(do func(fd uintptr)) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(do)
}
