package portmap

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Either filter keeps away what arrives; a host without BPF has the classic one.
func TestDropAll(t *testing.T) {
	if dropProgram() == nil {
		t.Log("this process may not load BPF programs: both are the classic filter")
	}
	for name, drop := range map[string]func(int) error{"program": dropAll, "classic": dropClassic} {
		t.Run(name, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			require.NoError(t, err)
			defer unix.Close(pair[0])
			defer unix.Close(pair[1])
			timeout := unix.NsecToTimeval(int64(10 * time.Millisecond))
			require.NoError(t, unix.SetsockoptTimeval(pair[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
			require.NoError(t, drop(pair[1]))
			_, _ = unix.Write(pair[0], []byte("x")) // a unix socket says that it was refused
			_, err = unix.Read(pair[1], make([]byte, 1))
			require.ErrorIs(t, err, unix.EAGAIN)
			require.NoError(t, unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0))
			_, err = unix.Write(pair[0], []byte("x"))
			require.NoError(t, err)
			_, err = unix.Read(pair[1], make([]byte, 1))
			require.NoError(t, err)
		})
	}
}
