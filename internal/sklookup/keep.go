package sklookup

import (
	"errors"
	"log/slog"
	"os"
	"slices"
	"strconv"
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
	KeptMost = 2*(programs+1) + 4

	programs = 3 // of each process

	keptSockets   = KeptPrefix + "sockets"
	keptVariables = "-variables"
)

// succession has one process take over from another, without a moment in which what
// both hold is free.
//
// While a process holds ports its links are kept, under the name of its generation,
// whose number is one more than that of the one before; beside them the map of its
// programs' variables, from when it has taken up what there was. Only then is what
// the earlier one held let go. So links without a map are of a process that was ended
// while it started, and hold a part of what the earlier one does; and of two
// generations with a map the later one holds all that is wanted of the other.
type succession struct {
	keep Keeper // nil: what is held is free when the process ends
	log  *slog.Logger

	generation int
	links      []Descriptor // of this process
	variables  Descriptor
	sockets    []Descriptor // that it opened last

	earlier int  // generation that holds ports until this one has settled; none is 0
	kept    bool // what this process holds is
	left    bool // to the next process
}

func linksOf(generation int) string     { return KeptPrefix + strconv.Itoa(generation) }
func variablesOf(generation int) string { return linksOf(generation) + keptVariables }

// Forget ends what an earlier process holds, where no Table takes over.
func Forget(keep Keeper, log *slog.Logger) {
	s := succession{keep: keep, log: log}
	inherited := keep.Inherited()
	for _, generation := range s.generations(inherited) {
		s.release(generation)
	}
	if len(inherited[keptSockets]) > 0 {
		s.remove(keptSockets)
	}
}

// generations are those of which anything is left, the last first. What has another
// name goes.
func (s *succession) generations(inherited map[string][]Descriptor) (all []int) {
	for name := range inherited {
		generation, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(name, KeptPrefix), keptVariables))
		switch {
		case err == nil && generation > 0:
			all = append(all, generation)
		case name != keptSockets:
			s.remove(name)
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	slices.Reverse(all)
	return all
}

// inherit finds the generation that holds what is wanted, and has its programs know
// who may bind. All others go.
func (s *succession) inherit(variables *ebpf.Map) {
	inherited := s.keep.Inherited()
	for _, generation := range s.generations(inherited) {
		s.generation = max(s.generation, generation)
		if s.earlier > 0 {
			s.release(generation)
			continue
		}
		err := errors.New("that process was ended while it started")
		if theirs := inherited[variablesOf(generation)]; len(theirs) == 1 && len(inherited[linksOf(generation)]) == programs {
			err = teach(theirs[0], variables)
		}
		if err != nil {
			s.log.Info("what an earlier process held of long ranges is let go", "generation", generation, "why", err)
			s.release(generation)
			continue
		}
		s.earlier = generation
	}
	if s.earlier == 0 && len(inherited[keptSockets]) > 0 {
		s.remove(keptSockets)
	}
	s.generation++
}

// teach gives an earlier process's programs the variables of this one's, which say
// who may bind what is held. Who adds a variable changes the size of the map, or
// what it is told by here.
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
func (s *succession) release(generation int) {
	for _, l := range s.keep.Inherited()[linksOf(generation)] {
		if err := detach(l); err != nil {
			s.log.Warn("end an earlier process's hold on ports", "generation", generation, "err", err)
		}
	}
	s.forget(generation)
}

// forget has nothing kept of a generation. Without the map its links are none, if
// this process ends in between.
func (s *succession) forget(generation int) {
	s.remove(variablesOf(generation))
	s.remove(linksOf(generation))
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
		s.log.Warn("long ranges may be taken by others while this process is restarted", "err", err)
		return false
	}
	return true
}

func (s *succession) remove(name string) {
	if err := s.keep.Remove(name); err != nil {
		s.log.Warn("an earlier process's hold on ports may stay", "name", name, "err", err)
	}
}

// follow has what this process holds kept from its first port on, to its last. What
// could not be kept is tried again with the next change.
func (s *succession) follow(holds bool) {
	if s.keep == nil || holds == s.kept {
		return
	}
	s.kept = holds && s.put(linksOf(s.generation), s.links...) &&
		(s.earlier > 0 || s.put(variablesOf(s.generation), s.variables)) &&
		s.put(keptSockets, s.sockets...)
	if !s.kept {
		s.unkeep()
	}
}

// unkeep has nothing kept of this process.
func (s *succession) unkeep() {
	s.kept = false
	s.forget(s.generation)
	if s.earlier == 0 { // else somebody may wait in them for what is held next
		s.remove(keptSockets)
	}
}

// settle ends the earlier generation, now that this one has what is wanted of it.
func (s *succession) settle() {
	earlier := s.earlier
	s.earlier = 0
	if !s.kept || !s.put(variablesOf(s.generation), s.variables) {
		s.unkeep()
	}
	s.release(earlier)
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
