package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// needNetAdmin says what is missing before the first netlink call says "operation
// not permitted".
func needNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("needs CAP_NET_ADMIN to make bridges and rules; run it as root, or install the managed plugin")
	}
	return nil
}

// openFileLimit is how many sockets the daemon may hold. The Go runtime has
// raised it to the hard limit before main.
func openFileLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return limit.Cur
}
