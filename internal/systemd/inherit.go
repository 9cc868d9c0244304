package systemd

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// firstFD is the number of the first descriptor that systemd passes
// (SD_LISTEN_FDS_START).
const firstFD = 3

// File is a descriptor that this process was started with. Its name is the
// socket unit's, or the one under which it was stored; it proves nothing.
type File struct {
	Name string

	cookie uint64 // in a Store

	mu sync.Mutex // guards below
	fd int        // -1 once closed
}

// NewFile is for a descriptor, which it owns from here on.
func NewFile(name string, fd int) *File { return &File{Name: name, fd: fd} }

// Control calls do with the descriptor, which do must not close.
func (f *File) Control(do func(fd uintptr)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return os.ErrClosed
	}
	do(uintptr(f.fd))
	return nil
}

// Close closes it. Closing again is nil.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return nil
	}
	fd := f.fd
	f.fd = -1
	return unix.Close(fd)
}

// Inherit takes the descriptors that systemd has started this process with, and
// the variables that tell of them, out of the environment: programs that this one
// starts get neither. It is called once, and before files are opened.
func Inherit() ([]*File, error) {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name)
	}
	if count == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil // they are meant for another process
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("sockets of systemd: LISTEN_FDS is %q, which is no number of them", count)
	}
	var all []string
	if names != "" {
		all = strings.Split(names, ":")
	}
	var files []*File
	for i := range n {
		if _, err := unix.FcntlInt(uintptr(firstFD+i), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return files, fmt.Errorf("sockets of systemd: descriptor %d of %d: %w", firstFD+i, n, err)
		}
		f := NewFile("", firstFD+i)
		if i < len(all) {
			f.Name = all[i]
		}
		files = append(files, f)
	}
	return files, nil
}
