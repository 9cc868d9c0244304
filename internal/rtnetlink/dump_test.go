package rtnetlink

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

func TestDump(t *testing.T) {
	calls := 0
	got, err := Dump(func() ([]int, error) {
		if calls++; calls < 3 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	require.NoError(t, err)
	assert.Equal(t, []int{1, 2}, got)

	calls = 0
	_, err = Dump(func() ([]int, error) { calls++; return []int{1}, netlink.ErrDumpInterrupted })
	require.ErrorIs(t, err, netlink.ErrDumpInterrupted)
	assert.Equal(t, 20, calls)

	cause := errors.New("no")
	calls = 0
	_, err = Dump(func() ([]int, error) { calls++; return nil, cause })
	require.ErrorIs(t, err, cause)
	assert.Equal(t, 1, calls)
}
