package systemd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sendWithin is how long a message may wait for room in systemd's queue.
const sendWithin = time.Second

// notify sends systemd descriptors with lines as "FDSTORE=1", in one message
// (sd_notify(3)).
func notify(fds []int, lines ...string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" || path[0] != '/' && path[0] != '@' {
		return fmt.Errorf("notify systemd: NOTIFY_SOCKET is %q, which is no unix socket", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(int64(sendWithin))
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	if err == nil {
		err = sendmsg(fd, []byte(strings.Join(lines, "\n")), rightsOf(fds), &unix.SockaddrUnix{Name: path}, 0)
	}
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

func rightsOf(fds []int) []byte {
	if len(fds) == 0 {
		return nil
	}
	return unix.UnixRights(fds...)
}

// sendmsg is sendmsg(2), again after a signal.
func sendmsg(fd int, text, rights []byte, to unix.Sockaddr, flags int) error {
	for {
		if err := unix.Sendmsg(fd, text, rights, to, unix.MSG_NOSIGNAL|flags); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
