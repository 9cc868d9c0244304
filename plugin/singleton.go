package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// namespaceName is an abstract unix socket. Abstract names belong to a network
// namespace, as rules and host ports do, and vanish with their process: it is a
// lock on just what two daemons must not share, and it never goes stale.
const namespaceName = "@github.com/portolan/portolan/daemon"

// namespaceLock makes this process the only portolan daemon of its network
// namespace, and answers whoever asks which one it is.
type namespaceLock struct {
	// taken says which other user has the name, "" where nobody has. Abstract
	// names have no permissions, and nobody may keep the daemon from starting; it
	// then goes on without the lock.
	taken string

	ln   *net.UnixListener
	text string
	done chan struct{} // closed when answer has ended
	once sync.Once
}

// lockNamespace takes the lock. Where another daemon has it, the error says
// that daemon's pid, socket and state folder. Where another user has the name, the
// lock says so and holds nothing.
func lockNamespace(socket, stateDir string) (*namespaceLock, error) {
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: namespaceName, Net: "unix"})
	if errors.Is(err, syscall.EADDRINUSE) {
		holder, err := namespaceHolder()
		if other, ok := errors.AsType[otherUserError](err); ok {
			return &namespaceLock{taken: other.Error()}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("lock the network namespace: %w", err)
		}
		return nil, fmt.Errorf("another portolan daemon serves this network namespace: %s", holder)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the network namespace: %w", err)
	}
	l := &namespaceLock{
		ln:   ln,
		text: fmt.Sprintf("socket %s, state %s", socket, stateDir),
		done: make(chan struct{}),
	}
	go l.answer()
	return l, nil
}

// Close gives the namespace free and ends the answering goroutine.
func (l *namespaceLock) Close() error {
	var err error
	l.once.Do(func() {
		if l.ln == nil {
			return
		}
		err = l.ln.Close()
		<-l.done
	})
	return err
}

func (l *namespaceLock) answer() {
	defer close(l.done)
	for {
		conn, err := l.ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(100 * time.Millisecond) // out of descriptors; they may come back
			continue
		}
		l.tell(conn)
	}
}

// tell is for this user alone: the paths are nobody else's business.
func (l *namespaceLock) tell(conn *net.UnixConn) {
	defer conn.Close()
	cred, err := peer(conn)
	if err != nil || (cred.Uid != 0 && int(cred.Uid) != os.Geteuid()) {
		return
	}
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprintf(conn, "pid %d, %s\n", os.Getpid(), l.text)
}

// errNoHolder says that no daemon serves this network namespace.
var errNoHolder = errors.New("no portolan daemon serves this network namespace")

// otherUserError says who holds the name of the lock and is no daemon.
type otherUserError struct {
	uid uint32
	pid int32
}

func (e otherUserError) Error() string {
	return fmt.Sprintf("the abstract socket %s is held by uid %d (pid %d), which is no portolan daemon", namespaceName, e.uid, e.pid)
}

// namespaceHolder asks the daemon of this network namespace what it is:
// "pid 812, socket /run/docker/plugins/portolan.sock, state /var/lib/portolan".
// The error wraps errNoHolder where there is none.
func namespaceHolder() (string, error) {
	conn, err := net.DialTimeout("unix", namespaceName, time.Second)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "", errNoHolder
	}
	if err != nil {
		return "", err
	}
	defer conn.Close()
	cred, err := peer(conn)
	if err != nil {
		return "", err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return "", otherUserError{cred.Uid, cred.Pid}
	}
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	line, err := io.ReadAll(io.LimitReader(conn, 4096))
	if err != nil || len(line) == 0 {
		return holderPid(cred), nil
	}
	return withPid(strings.TrimSpace(string(line)), cred), nil
}

// withPid replaces the pid that the daemon gave itself by the one that is seen
// from here: a managed plugin is pid 1 of its own pid namespace.
func withPid(line string, cred *unix.Ucred) string {
	_, rest, ok := strings.Cut(line, ", ")
	if !ok {
		return holderPid(cred)
	}
	return holderPid(cred) + ", " + rest
}

func holderPid(cred *unix.Ucred) string {
	if cred.Pid == 0 {
		return "pid unknown (in another pid namespace)"
	}
	return fmt.Sprintf("pid %d", cred.Pid)
}
