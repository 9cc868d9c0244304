package systemd

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// perMessage is how many sockets are sent at a time; their copies are open for
	// a moment. The kernel takes 253 (SCM_MAX_FD).
	perMessage = 64
	// queueSize is the limit of the queue in bytes. A message takes about one KiB.
	queueSize = 4 << 20
)

// The names of the two ends of the queue in systemd's store.
const (
	nameIn  = "ports-in"
	nameOut = "ports-out"
)

// Socket lends its descriptor. A closed one does not, or gives an error.
type Socket = interface {
	Control(do func(fd uintptr)) error
}

// Store is sockets that systemd keeps, by a queue. Its methods are safe for
// concurrent use, and wait for nobody.
type Store struct {
	log *slog.Logger
	in  *File // where sockets are sent to
	out *File // where they are received

	mu        sync.Mutex       // guards below, and the queue
	inherited map[uint64]*File // that nobody has claimed, by cookie
	stored    map[Socket]*item
	queue     [][]*item // as it is in the kernel, a message each
	full      bool      // said
}

// item is a socket in the queue.
type item struct{ Socket }

// StoreFiles is how many descriptors a Store has systemd keep.
const StoreFiles = 2

// StoreSize is how many descriptors systemd keeps for this process at most, as it
// says (systemd 254) or the unit does.
func StoreSize() int {
	n, err := strconv.Atoi(os.Getenv("FDSTORE"))
	if err != nil || os.Getenv("NOTIFY_SOCKET") == "" {
		return 0
	}
	return max(n, 0)
}

// OpenStore takes the queue out of what this process was started with, which it owns
// from here on, or has systemd keep a new one. A nil logger is silent.
func OpenStore(inherited []*File, log *slog.Logger) (*Store, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Store{log: log, inherited: map[uint64]*File{}, stored: map[Socket]*item{}}
	for _, f := range inherited {
		switch {
		case f.Name == nameIn && s.in == nil && isQueue(f):
			s.in = f
		case f.Name == nameOut && s.out == nil && isQueue(f):
			s.out = f
		default:
			log.Info("systemd keeps a descriptor that is none of ours", "name", f.Name)
			_ = errors.Join(f.Close(), notify(nil, "FDSTOREREMOVE=1", "FDNAME="+f.Name)) // it is no harm
		}
	}
	if s.in != nil && s.out != nil {
		s.inherit()
		return s, nil
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("store of systemd: %w", err), s.Close())
	}
	return s, nil
}

// isQueue says whether a descriptor may be an end of a queue.
func isQueue(f *File) (yes bool) {
	_ = f.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		kind, err2 := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
		yes = err == nil && err2 == nil && domain == unix.AF_UNIX && kind == unix.SOCK_SEQPACKET
	})
	return yes
}

// open makes the queue. Both ends are systemd's, too: what is queued lives as long as
// the one that receives.
func (s *Store) open() error {
	err := errors.Join(closeFile(s.in), closeFile(s.out))
	ends, e := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err = errors.Join(err, e); err != nil {
		return err
	}
	s.in, s.out = NewFile(nameIn, ends[0]), NewFile(nameOut, ends[1])
	if unix.SetsockoptInt(ends[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, queueSize) != nil {
		_ = unix.SetsockoptInt(ends[0], unix.SOL_SOCKET, unix.SO_SNDBUF, queueSize) // less is less
	}
	for i, name := range []string{nameIn, nameOut} {
		// FDPOLL=0: systemd is not to look whether it has ended.
		err := errors.Join(notify(nil, "FDSTOREREMOVE=1", "FDNAME="+name),
			notify(ends[i:i+1], "FDSTORE=1", "FDNAME="+name, "FDPOLL=0"))
		if err != nil {
			return err
		}
	}
	return nil
}

func closeFile(f *File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// inherit has a look at what is queued, and leaves it there.
func (s *Store) inherit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*File
	for {
		fds, err := s.receive()
		if errors.Is(err, errTorn) {
			s.log.Warn("sockets that systemd keeps are lost", "got", len(fds), "err", err)
			closeAll(fds)
			continue // with the next message
		}
		if err != nil || len(fds) == 0 {
			break
		}
		for _, fd := range fds {
			f := NewFile("", fd)
			c, err := cookie(f)
			if err != nil || s.inherited[c] != nil {
				_ = f.Close()
				continue
			}
			f.cookie = c
			s.inherited[c] = f
			all = append(all, f)
		}
	}
	for some := range slices.Chunk(all, perMessage) {
		sockets := make([]Socket, len(some))
		for i, f := range some {
			sockets[i] = f
		}
		s.send(sockets)
	}
}

var errNoFile = errors.New("it has no file descriptor")

// errTorn is of a message that was received, and not all of it.
var errTorn = errors.New("descriptors of a message are lost")

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

// Put stores sockets. Those that are stored, and those that have no descriptor, are
// left alone; an inherited one is stored already, and is from now on s's copy of it.
// What finds no room is not stored, which is logged.
func (s *Store) Put(sockets []Socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var fresh []Socket
	for _, sock := range sockets {
		if s.stored[sock] != nil {
			continue
		}
		if len(s.inherited) > 0 {
			c, err := cookie(sock)
			if err != nil {
				continue
			}
			if f := s.inherited[c]; f != nil {
				s.claim(f, sock)
				continue
			}
		}
		fresh = append(fresh, sock)
	}
	for some := range slices.Chunk(fresh, perMessage) {
		s.send(some)
	}
}

// claim has a copy take the place of an inherited socket.
func (s *Store) claim(f *File, sock Socket) {
	delete(s.inherited, f.cookie)
	if it := s.stored[f]; it != nil {
		it.Socket = sock
		s.stored[sock] = it
	}
	delete(s.stored, f)
	_ = f.Close()
}

// Remove takes sockets out of the store, whether they are open still or not; of
// those that are not in it, nothing happens. When it returns, the store does not hold
// them any more.
func (s *Store) Remove(sockets []Socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := false
	for _, sock := range sockets {
		changed = s.stored[sock] != nil || changed
		delete(s.stored, sock)
		if f, ok := sock.(*File); ok {
			delete(s.inherited, f.cookie)
			_ = f.Close()
		}
	}
	if changed {
		s.turn()
	}
}

// turn takes the whole queue out and puts what is wanted back.
func (s *Store) turn() {
	queue := s.queue
	s.queue = nil
	var fds []int
	var members []*item
	flush := func() {
		s.queueUp(fds, members)
		fds, members = nil, nil
	}
	for _, old := range queue {
		got, err := s.receive()
		if err != nil || len(got) != len(old) {
			s.log.Warn("sockets that systemd keeps are lost", "count", len(old), "got", len(got), "err", err)
			closeAll(got)
			for _, m := range old {
				delete(s.stored, m.Socket)
			}
			continue
		}
		for i, m := range old {
			if s.stored[m.Socket] != m {
				_ = unix.Close(got[i])
				continue
			}
			if len(fds) == perMessage {
				flush()
			}
			fds, members = append(fds, got[i]), append(members, m)
		}
	}
	flush()
}

// Settle removes what was inherited and has not been put since.
func (s *Store) Settle() {
	if rest := s.Inherited(); len(rest) > 0 {
		s.log.Info("sockets of an earlier process are not wanted any more", "count", len(rest))
		s.Remove(rest)
	}
}

// Close closes this process's ends: what is stored stays.
func (s *Store) Close() error {
	return errors.Join(closeFile(s.in), closeFile(s.out))
}

// send stores copies of sockets, perMessage at most.
func (s *Store) send(sockets []Socket) {
	var fds []int
	var members []*item
	for _, sock := range sockets {
		fd := -1
		failed := errNoFile
		err := sock.Control(func(of uintptr) { fd, failed = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
		if errors.Join(err, failed) == nil { // else it is closed, or there is no file left
			fds, members = append(fds, fd), append(members, &item{sock})
		}
	}
	s.queueUp(fds, members)
}

// queueUp sends descriptors, which it closes.
func (s *Store) queueUp(fds []int, members []*item) {
	if len(fds) == 0 {
		return
	}
	defer closeAll(fds)
	var sent error
	err := s.in.Control(func(in uintptr) {
		// A byte for each, so that the length of the queue is the number of sockets.
		sent = sendmsg(int(in), make([]byte, len(fds)), unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT)
	})
	if err = errors.Join(err, sent); err != nil {
		for _, m := range members {
			delete(s.stored, m.Socket)
		}
		if !s.full {
			s.full = true
			s.log.Warn("systemd keeps no more sockets over a restart: ports may be taken meanwhile", "stored", len(s.stored), "err", err)
		}
		return
	}
	s.queue = append(s.queue, members)
	for _, m := range members {
		s.stored[m.Socket] = m
	}
}

// receive takes one message out of the queue, none where there is none.
func (s *Store) receive() (fds []int, err error) {
	data, rights := make([]byte, perMessage), make([]byte, unix.CmsgSpace(4*perMessage))
	failed := errNoFile
	n, oobn := 0, 0
	err = s.out.Control(func(out uintptr) {
		for {
			n, oobn, _, _, failed = unix.Recvmsg(int(out), data, rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
			if !errors.Is(failed, unix.EINTR) {
				return
			}
		}
	})
	if errors.Is(failed, unix.EAGAIN) {
		return nil, nil
	}
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:oobn])
	for _, m := range messages {
		some, e := unix.ParseUnixRights(&m)
		fds, err = append(fds, some...), errors.Join(err, e)
	}
	if err == nil && len(fds) != n {
		err = fmt.Errorf("%d of %d sockets: no file left", len(fds), n)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", errTorn, err)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
