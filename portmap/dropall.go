package portmap

import (
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropAll has a socket drop what arrives. The program is one for all sockets
// where the kernel lets this process load it: a classic filter is compiled anew
// for each.
func dropAll(fd int) error {
	if prog := dropProgram(); prog >= 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, prog); err == nil {
			return nil
		}
	}
	dropOnly := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	prog := unix.SockFprog{Len: 1, Filter: &dropOnly}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
}

// dropProgram is the file descriptor of the program, which stays open; -1 if the
// process may not have one.
var dropProgram = sync.OnceValue(func() int {
	insns := [...]struct {
		code, regs uint8
		off        int16
		imm        int32
	}{
		{code: unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K}, // r0 = 0: no byte is kept
		{code: unix.BPF_JMP | unix.BPF_EXIT},
	}
	license := [...]byte{'M', 'I', 'T', 0}
	var pinned runtime.Pinner // attr has their addresses as numbers
	pinned.Pin(&insns)
	pinned.Pin(&license)
	defer pinned.Unpin()
	attr := struct { // the beginning of union bpf_attr, for BPF_PROG_LOAD
		kind, count    uint32
		insns, license uint64
		_              [4]uint64 // log, kernel version, flags, name
	}{
		kind: unix.BPF_PROG_TYPE_SOCKET_FILTER, count: uint32(len(insns)),
		insns:   uint64(uintptr(unsafe.Pointer(&insns))),
		license: uint64(uintptr(unsafe.Pointer(&license))),
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return -1
	}
	return int(fd)
})
