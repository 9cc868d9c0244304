package hooks

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func rawConnect(fd int, sa *[28]byte) (uintptr, uintptr, unix.Errno) {
	return unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(sa)), unsafe.Sizeof(*sa))
}
