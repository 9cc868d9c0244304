package portmap

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestOneProgramDropsAllForEverySocket(t *testing.T) {
	prog := dropProgram()
	if prog < 0 {
		t.Skip("this kernel, or this process, has no BPF")
	}
	flags, err := unix.FcntlInt(uintptr(prog), unix.F_GETFD, 0)
	require.NoError(t, err)
	require.NotZero(t, flags&unix.FD_CLOEXEC, "a child inherits it")
	require.Equal(t, prog, dropProgram())
}
