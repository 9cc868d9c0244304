package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Open reads the state in dir and keeps dir locked until Close. A directory
// that is not there is made, and a state file that is not there is a first
// start: the store is empty. A nil log is silent.
//
// A damaged state file (empty, cut short, or changed in any bit) is renamed to
// state.json.damaged-TIME beside it, never over another; Open then logs a
// warning, starts empty, and Damaged returns the path.
//
// Whatever else is wrong is an error, which leaves the state file as it is. It
// wraps ErrLocked and names the pid of the holder if dir is open elsewhere; it
// wraps ErrNewer if a newer program wrote the file; it is that of a directory
// to which every user may write, since what is there is believed; else of a file
// which cannot be read, or of a directory in which a file of the same size
// cannot be written (EACCES, EROFS, ENOSPC): a daemon that cannot write must
// not begin.
func Open(dir string, log *slog.Logger) (*Store, error) {
	return open(folder{dir: dir}, migrations, log)
}

func open(f folder, steps []migration, log *slog.Logger) (*Store, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := makeDir(f.dir); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	lock, err := takeLock(f.dir)
	if errors.Is(err, ErrLocked) {
		return nil, err // says it all
	}
	if err != nil {
		return nil, fmt.Errorf("lock state directory %s: %w", f.dir, err)
	}
	s := &Store{folder: f, schema: schemaAfter(steps), log: log, lock: lock}
	if err := s.load(steps, log); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

// makeDir makes dir, durably. One to which every user may write is refused: its
// state is believed.
func makeDir(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return &os.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
	}
	if err == nil && info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("every user may write to %s; chmod o-w %[1]s, or choose another folder", dir)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// load sets the state from the file.
func (s *Store) load(steps []migration, log *slog.Logger) error {
	st, damage, err := s.readState(steps)
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	data, err := encode(st, s.schema)
	if err != nil {
		return err
	}
	if err := s.folder.rehearse(data); err != nil {
		return fmt.Errorf("write to state directory: %w", err)
	}
	if damage != nil {
		if s.damaged, err = s.folder.setAside(time.Now()); err != nil {
			return fmt.Errorf("set damaged state aside: %w", err)
		}
		log.Warn("state file is damaged: set it aside and start without any state", "path", s.damaged, "err", damage)
	}
	s.state.Store(st)
	return nil
}

// readState returns the state in the file. If that is damaged, damage says how,
// and the state is empty, as it is where there is no file.
func (s *Store) readState(steps []migration) (st *state, damage, err error) {
	file, err := s.folder.read()
	if errors.Is(err, os.ErrNotExist) {
		return &state{}, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	st, err = decode(file, steps)
	switch {
	case errors.Is(err, errDamaged):
		return &state{}, err, nil
	case err != nil:
		return nil, nil, fmt.Errorf("%s: %w", s.folder.path(stateName), err)
	}
	return st, nil, nil
}

// Remove takes away every file of ours in dir, damaged ones too, and dir itself
// if nothing else is in it. What is absent is no error. While a Store has dir
// open, Remove changes nothing and the error wraps ErrLocked.
func Remove(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	lock, err := takeLock(dir)
	if errors.Is(err, ErrLocked) {
		return err
	}
	if err != nil {
		return fmt.Errorf("remove state directory %s: %w", dir, err)
	}
	if err := errors.Join(removeFiles(dir), lock.Close()); err != nil {
		return fmt.Errorf("remove state directory %s: %w", dir, err)
	}
	return nil
}

func removeFiles(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, file := range files {
		name := file.Name()
		if name != stateName && name != newName && !strings.HasPrefix(name, damagedPrefix) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	// The lock is the last to go, so that nobody opens half a directory.
	if err := os.Remove(filepath.Join(dir, lockName)); err != nil {
		return err
	}
	err = unix.Rmdir(dir)
	// Others have files there, or it is a mount point (a managed plugin's is),
	// or it is a link.
	for _, stays := range []error{unix.ENOTEMPTY, unix.EEXIST, unix.EBUSY, unix.ENOTDIR} {
		if errors.Is(err, stays) {
			return nil
		}
	}
	if err != nil {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
