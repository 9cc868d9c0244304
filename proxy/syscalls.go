package proxy

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of this file never block: the sockets' are made with MSG_DONTWAIT or
// on sockets that are non-blocking, and epoll is asked without a timeout. So they go past the scheduler, which
// saves about as much as a small datagram costs. A call that can block must not
// be made this way: it would hold up the garbage collector.

// mmsghdr is what recvmmsg(2) and sendmmsg(2) have for each datagram.
type mmsghdr struct {
	unix.Msghdr
	length uint32
}

// recvmmsg is how many of hs were filled.
func recvmmsg(fd int, hs []mmsghdr) (int, error) {
	return result(syscall.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&hs[0])), uintptr(len(hs)), unix.MSG_DONTWAIT, 0, 0))
}

// sendmmsg is how many of hs were sent; an error is that of the first.
func sendmmsg(fd int, hs []mmsghdr) (int, error) {
	return result(syscall.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&hs[0])), uintptr(len(hs)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0))
}

func sendmsg(fd int, h *unix.Msghdr) error {
	_, err := result(syscall.RawSyscall6(unix.SYS_SENDMSG, uintptr(fd),
		uintptr(unsafe.Pointer(h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0, 0))
	return err
}

// send is for a connected socket.
func send(fd int, v *unix.Iovec) error {
	_, err := result(syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
		uintptr(unsafe.Pointer(v.Base)), uintptr(v.Len), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0))
	return err
}

// epollPoll is epoll_wait(2) that returns at once.
func epollPoll(fd int, events []unix.EpollEvent) (int, error) {
	return result(syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd),
		uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0))
}

// epollAdd is epoll_ctl(2) for a file that is not watched yet.
func epollAdd(epoll, fd int, ev *unix.EpollEvent) error {
	_, err := result(syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll),
		unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0))
	return err
}

// openSocket is socket(2), non-blocking.
func openSocket(family, kind int) (int, error) {
	return result(syscall.RawSyscall6(unix.SYS_SOCKET, uintptr(family),
		uintptr(kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK), 0, 0, 0, 0))
}

// closeSocket is close(2) of a socket that does not linger.
func closeSocket(fd int) error {
	_, err := result(syscall.RawSyscall6(unix.SYS_CLOSE, uintptr(fd), 0, 0, 0, 0, 0))
	return err
}

func setInt(fd, level, option, value int) error {
	v := int32(value)
	_, err := result(syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0))
	return err
}

// setAbort has close(2) send RST.
func setAbort(fd int) error {
	v := unix.Linger{Onoff: 1}
	_, err := result(syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0))
	return err
}

// localName is getsockname(2).
func localName(fd int) (sockname, error) {
	var s sockname
	n := uint32(len(s))
	_, err := result(syscall.RawSyscall6(unix.SYS_GETSOCKNAME, uintptr(fd),
		uintptr(unsafe.Pointer(&s)), uintptr(unsafe.Pointer(&n)), 0, 0, 0))
	return s, err
}

func bind(fd int, s *sockname) error {
	_, err := result(syscall.RawSyscall6(unix.SYS_BIND, uintptr(fd),
		uintptr(unsafe.Pointer(s)), s.length(), 0, 0, 0))
	return err
}

// connect is of a non-blocking socket: EINPROGRESS is its usual error.
func connect(fd int, s *sockname) error {
	_, err := result(syscall.RawSyscall6(unix.SYS_CONNECT, uintptr(fd),
		uintptr(unsafe.Pointer(s)), s.length(), 0, 0, 0))
	return err
}

// accept4 takes the next connection of a non-blocking listener.
func accept4(fd int) (int, error) {
	return result(syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0, 0))
}

func shutdownWrite(fd int) error {
	_, err := result(syscall.RawSyscall6(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0, 0, 0, 0))
	return err
}

// readSome is recv(2). b is not empty.
func readSome(fd int, b []byte) (int, error) {
	return result(syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
		uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0))
}

// writeSome is send(2). b is not empty.
func writeSome(fd int, b []byte) (int, error) {
	return result(syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
		uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0))
}

// splice moves n bytes at most between a non-blocking socket and a pipe.
func splice(from, to, n int) (int, error) {
	return result(syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0,
		uintptr(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE))
}

func result(r, _ uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// putSegment writes the control message that has the kernel cut a message into
// datagrams of so many bytes, and returns its length.
func putSegment(b []byte, size int) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Pointer(&b[unix.CmsgLen(0)])) = uint16(size)
	return unix.CmsgSpace(2)
}

// bytesOf is a copy, whose capacity is not 0.
func bytesOf(v *unix.Iovec) []byte {
	return append(make([]byte, 0, v.Len+1), unsafe.Slice(v.Base, v.Len)...)
}

// queueDrops is what the kernel has dropped at a socket because its queue was full
// (sk_drops): datagrams, or of a listener SYNs and connections.
func queueDrops(fd int) uint32 {
	const drops, vars = 8, 9 // SK_MEMINFO_DROPS, SK_MEMINFO_VARS
	var info [vars]uint32
	size := uint32(unsafe.Sizeof(info))
	_, err := result(syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0))
	if err != nil || size < uint32(unsafe.Sizeof(info)) {
		return 0
	}
	return info[drops]
}
