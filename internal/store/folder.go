package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/fault"
)

// The names in the state directory.
const (
	stateName     = "state.json"
	newName       = "state.json.new"
	damagedPrefix = "state.json.damaged-"
	lockName      = "lock"
)

// folder is the files of a state directory. Whoever uses it holds the lock.
type folder struct {
	dir string
	// before, if not nil, may fail a step of a write before it starts: create,
	// write, sync, rename or syncdir. For tests.
	before func(step string) error
}

func (f *folder) path(name string) string { return filepath.Join(f.dir, name) }

func (f *folder) step(name string, do func() error) error {
	if f.before != nil {
		if err := f.before(name); err != nil {
			return err
		}
	}
	err := do()
	if fault.On {
		fault.Point("store " + name)
	}
	return err
}

// read returns the state file. What is not a regular file is an error: a link
// would not survive the first write, and a FIFO would never end.
func (f *folder) read() ([]byte, error) {
	file, err := os.OpenFile(f.path(stateName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", file.Name())
	}
	return io.ReadAll(file)
}

// replace makes data the state file. After an error the file is as it was, but
// for one case: where replaced is true only the directory could not be synced,
// and which of the two files a crash would leave is not known.
func (f *folder) replace(data []byte) (replaced bool, err error) {
	if err := f.prepare(data); err != nil {
		return false, err
	}
	err = f.step("rename", func() error { return os.Rename(f.path(newName), f.path(stateName)) })
	if err != nil {
		return false, errors.Join(err, f.discard())
	}
	return true, f.step("syncdir", func() error { return syncDir(f.dir) })
}

// prepare writes data to the new file, down to the disk. After an error there
// is no new file, which leaves its space to others.
func (f *folder) prepare(data []byte) error {
	// A leftover is removed rather than truncated, for its owner and mode.
	if err := f.discard(); err != nil {
		return err
	}
	var file *os.File
	err := f.step("create", func() (err error) {
		file, err = os.OpenFile(f.path(newName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	err = f.step("write", func() error {
		_, err := file.Write(data)
		return err
	})
	if err == nil {
		err = f.step("sync", file.Sync)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, f.discard())
	}
	return nil
}

// rehearse does all of a write of data that can fail for want of space or
// permission, and leaves the state file alone.
func (f *folder) rehearse(data []byte) error {
	if err := f.prepare(data); err != nil {
		return err
	}
	return f.discard()
}

// discard removes the new file, if there is one.
func (f *folder) discard() error {
	if err := os.Remove(f.path(newName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// setAside renames the state file, to a name that was not in use, and returns
// the path. It does not sync: a crash that undoes the rename leaves a damaged
// file to be set aside again, and the next write syncs both renames.
func (f *folder) setAside(now time.Time) (string, error) {
	base := f.path(damagedPrefix + now.UTC().Format("20060102T150405Z"))
	for path, n := base, 2; ; path, n = base+"-"+strconv.Itoa(n), n+1 {
		_, err := os.Lstat(path)
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		// Nobody takes the name in between: we hold the lock.
		if err := os.Rename(f.path(stateName), path); err != nil {
			return "", err
		}
		return path, nil
	}
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
