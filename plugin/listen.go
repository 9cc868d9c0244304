package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// access is who may use a socket.
type access struct {
	group  int         // its ID, -1 for this process's own
	mode   fs.FileMode // of the socket
	folder fs.FileMode // of a folder that has to be made for it
}

var ownerOnly = access{group: -1, mode: 0o600, folder: 0o700}

// listenSocket listens on a unix socket. A socket file that an earlier daemon
// left behind is replaced; one on which somebody answers is not, and neither is
// any other kind of file. A folder in which every user may put a socket of the
// same name is refused.
func listenSocket(path string, who access) (*net.UnixListener, error) {
	if longest := len(unix.RawSockaddrUnix{}.Path) - 1; len(path) > longest {
		return nil, fmt.Errorf("listen on %s: a socket's path has at most %d bytes (unix(7))", path, longest)
	}
	if err := os.MkdirAll(filepath.Dir(path), who.folder); err != nil {
		return nil, fmt.Errorf("make the socket's folder: %w", err)
	}
	if err := refuseOpenFolder(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// A umask rather than a chmod: between bind and chmod, anybody could
	// connect. The umask is the whole process's, which has nothing else
	// running yet.
	old := unix.Umask(int(^who.mode & fs.ModePerm))
	defer unix.Umask(old)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err // says "listen unix PATH: …" by itself
	}
	if who.group < 0 {
		return ln, nil
	}
	if err := os.Lchown(path, -1, who.group); err != nil {
		return nil, errors.Join(fmt.Errorf("give the socket to its group: %w", err), ln.Close())
	}
	return ln, nil
}

// refuseOpenFolder is an error where others than the owner and the group of a
// folder can replace files of ours in it. The sticky bit keeps them from that, but
// not from being there first.
func refuseOpenFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("every user may write to %s; chmod o-w %[1]s, or choose another folder", dir)
	}
	return nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file of this name that is no socket; move it away")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		defer conn.Close()
		return fmt.Errorf("another process answers there%s; stop it or choose another --socket", peerText(conn))
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// peer is the process at the other end of a unix socket, as it was when it
// listened or connected. The pid is 0 where it lies in another pid namespace.
func peer(conn net.Conn) (*unix.Ucred, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%T is no unix socket", conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, credErr)
}

func peerText(conn net.Conn) string {
	cred, err := peer(conn)
	if err != nil || cred.Pid == 0 {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", cred.Pid)
}
