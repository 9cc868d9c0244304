package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLocked means that another Store has the directory open, in this process or
// in another.
var ErrLocked = errors.New("state directory in use")

// lockedError is ErrLocked with the holder's pid, 0 where it is not known. It
// is the pid in the holder's own pid namespace.
type lockedError struct {
	dir string
	pid int
}

func (e *lockedError) Error() string {
	if e.pid == 0 {
		return fmt.Sprintf("state directory %s is in use by another process", e.dir)
	}
	return fmt.Sprintf("state directory %s is in use by pid %d", e.dir, e.pid)
}

func (e *lockedError) Unwrap() error { return ErrLocked }

// takeLock locks dir until the file is closed, be it by the end of the process.
// It never waits.
func takeLock(dir string) (*os.File, error) {
	for {
		f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		current, err := lockFile(dir, f)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if current {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

// lockFile locks f and writes the pid into it. It returns false if f is no
// longer the directory's lock: Remove was quicker, and a lock on what it
// removed keeps nobody out.
func lockFile(dir string, f *os.File) (current bool, err error) {
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, &lockedError{dir, holder(f)}
	}
	if err != nil {
		return false, fmt.Errorf("flock %s: %w", f.Name(), err)
	}
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(f.Name())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !os.SameFile(mine, named) {
		return false, nil
	}
	if err := f.Truncate(0); err != nil {
		return false, err
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return true, err
}

// holder is the pid in a lock file, or 0. The lock is what counts; the pid is
// only for people, and may not be written yet.
func holder(f *os.File) int {
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}
