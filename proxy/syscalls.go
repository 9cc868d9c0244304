package proxy

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of this file never block: the sockets' are made with MSG_DONTWAIT,
// and epoll is asked without a timeout. So they go past the scheduler, which
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
