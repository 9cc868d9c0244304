package systemd

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Named is descriptors that systemd itself keeps, each under a name: for few that
// seldom change, where a Store is for many. Its methods are safe for concurrent use.
type Named struct {
	mu        sync.Mutex // guards below
	inherited map[string][]*File
}

// NewNamed takes up what this process was started with, which it owns from here on.
func NewNamed(inherited []*File) *Named {
	n := &Named{inherited: map[string][]*File{}}
	for _, f := range inherited {
		n.inherited[f.Name] = append(n.inherited[f.Name], f)
	}
	return n
}

// Inherited are the descriptors that an earlier process left, by name. They stay the
// Named's: whoever wants one makes a copy.
func (n *Named) Inherited() map[string][]Socket {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := map[string][]Socket{}
	for name, files := range n.inherited {
		for _, f := range files {
			all[name] = append(all[name], f)
		}
	}
	return all
}

// Put has systemd keep descriptors under a name, beside those that it has under it.
// Of one that it has already nothing changes, not even the name. Those that are
// closed are left out.
func (n *Named) Put(name string, what ...Socket) error {
	var fds []int
	defer func() { closeAll(fds) }()
	for _, s := range what {
		fd := -1
		failed := errNoFile
		err := s.Control(func(of uintptr) { fd, failed = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
		switch {
		case err != nil: // closed
		case failed != nil:
			return fmt.Errorf("keep %s: %w", name, failed)
		default:
			fds = append(fds, fd)
		}
	}
	if len(fds) == 0 {
		return nil
	}
	// FDPOLL=0: systemd is not to look whether they have ended.
	return notify(fds, "FDSTORE=1", "FDNAME="+name, "FDPOLL=0")
}

// Remove has systemd let go of what it keeps under a name, which may be nothing. It
// does so soon after this returns.
func (n *Named) Remove(name string) error {
	n.mu.Lock()
	files := n.inherited[name]
	delete(n.inherited, name)
	n.mu.Unlock()
	err := notify(nil, "FDSTOREREMOVE=1", "FDNAME="+name)
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Close closes this process's copies. What systemd keeps stays.
func (n *Named) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var err error
	for _, files := range n.inherited {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}
	clear(n.inherited)
	return err
}
