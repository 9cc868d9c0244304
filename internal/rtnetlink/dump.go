// Package rtnetlink is what users of vishvananda/netlink share here.
package rtnetlink

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Dump lists what the kernel has, as netlink.LinkList does, and again if that was
// changed meanwhile: then something may be missing (NLM_F_DUMP_INTR). The error is
// list's; where it is still netlink.ErrDumpInterrupted after 20 times, the host is
// changing too fast to be looked at.
func Dump[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 20
	var err error
	for range tries {
		var got []T
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return got, err
		}
	}
	return nil, err
}
