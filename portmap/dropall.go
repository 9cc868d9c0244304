package portmap

import (
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// dropAll has a socket drop what arrives. The program is one for all sockets
// where the kernel lets this process load it: a classic filter is compiled anew
// for each.
func dropAll(fd int) error {
	if prog := dropProgram(); prog != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, prog.FD()); err == nil {
			return nil
		}
	}
	return dropClassic(fd)
}

func dropClassic(fd int) error {
	dropOnly := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	prog := unix.SockFprog{Len: 1, Filter: &dropOnly}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
}

// dropProgram stays loaded; it is nil if the process may not load one.
var dropProgram = sync.OnceValue(func() *ebpf.Program {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SocketFilter,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, // no byte is kept
		License:      "MIT",
	})
	if err != nil {
		return nil
	}
	return prog
})
