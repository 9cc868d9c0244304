package systemd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sendWithin is how long a message may wait for room in systemd's queue, and
// barrierWithin how long systemd may take to come to its end. It takes well below
// a millisecond when it is not busy.
const (
	sendWithin    = time.Second
	barrierWithin = 2 * time.Second
)

// Notifier sends messages with descriptors to systemd (sd_notify(3)). It is safe
// for concurrent use.
type Notifier struct {
	fd int
	to *unix.SockaddrUnix
}

// Dial is a Notifier for who started this process, nil where nobody wants to
// hear.
func Dial() (*Notifier, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	if path[0] != '/' && path[0] != '@' {
		return nil, fmt.Errorf("notify systemd: NOTIFY_SOCKET is %q, which is no unix socket", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("notify systemd: %w", err)
	}
	// Not connected: systemd may be executed again, with a new socket.
	tv := unix.NsecToTimeval(int64(sendWithin))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return nil, errors.Join(fmt.Errorf("notify systemd: %w", err), unix.Close(fd))
	}
	return &Notifier{fd, &unix.SockaddrUnix{Name: path}}, nil
}

// Close closes its socket.
func (n *Notifier) Close() error {
	return unix.Close(n.fd)
}

// send sends lines as "FDSTORE=1", in one message. It waits a second at most.
func (n *Notifier) send(flags int, fds []int, lines ...string) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(n.fd, []byte(strings.Join(lines, "\n")), rights, n.to, unix.MSG_NOSIGNAL|flags)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("notify systemd: %w", err)
		}
		return nil
	}
}

// barrier returns when systemd has done what it was told before.
func (n *Notifier) barrier() error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("wait for systemd: %w", err)
	}
	defer unix.Close(ends[0])
	err := n.send(0, ends[1:], "BARRIER=1")
	if err = errors.Join(err, unix.Close(ends[1])); err != nil {
		return err
	}
	// It closes its end when it comes to the message.
	for end := time.Now().Add(barrierWithin); ; {
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("wait for systemd: no answer within %s", barrierWithin)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(ends[0])}}, int(left/time.Millisecond)+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for systemd: %w", err)
		}
		if n > 0 {
			return nil
		}
	}
}
