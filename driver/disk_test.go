package driver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/portmap"
)

// newSmallRig is a rig whose state is on a disk of 64 KiB. full fills it up,
// and returns what makes room again.
func newSmallRig(t *testing.T) (r *rig, full func() (room func())) {
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	r = &rig{t: t, dir: filepath.Join(dir, "state")}
	r.open()
	t.Cleanup(func() { _ = r.store.Close() })
	require.NoError(t, r.Restore())
	full = func() func() {
		filler := filepath.Join(dir, "filler")
		err := os.WriteFile(filler, []byte(strings.Repeat("x", 64<<10)), 0o600)
		require.ErrorIs(t, err, unix.ENOSPC)
		return func() { require.NoError(t, os.Remove(filler)) }
	}
	return r, full
}

// What has ended gives back all it held, though nobody can write that down.
func TestFullDisk(t *testing.T) {
	r, full := newSmallRig(t)
	r.ok("CreateNetwork", networkOf(1, true, nil))
	r.ok("CreateNetwork", networkOf(2, true, nil))
	r.run(1, 10, 2, true, "/sb1")
	r.run(1, 11, 3, true, "/sb2")
	r.run(2, 20, 2, true, "/sb3")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53)))
	r.ok("ProgramExternalConnectivity", programOf(2, 20, udp("", 54, 53)))
	room := full()

	for what, err := range map[string]string{
		"a network":        r.refused("CreateNetwork", networkOf(3, true, nil)),
		"an endpoint":      r.refused("CreateEndpoint", object{"NetworkID": id(1), "EndpointID": id(12), "Interface": object{"Address": "10.1.0.9/24"}}),
		"a published port": r.refused("ProgramExternalConnectivity", programOf(1, 11, udp("", 55, 53))),
	} {
		assert.Contains(t, err, r.dir, what)
		assert.Contains(t, err, "no space left on device", what)
	}
	require.Len(t, r.store.Networks(), 2)

	r.ok("RevokeExternalConnectivity", endpointOf(1, 10))
	assert.Empty(t, r.published(10))
	r.ok("Leave", endpointOf(1, 10))
	assert.NotContains(t, r.pub.heldBy, "/sb1")
	r.ok("DeleteEndpoint", endpointOf(1, 10))
	r.ok("Leave", endpointOf(1, 11))
	r.ok("DeleteEndpoint", endpointOf(1, 11))
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.ok("DeleteNetwork", object{"NetworkID": id(2)}) // with an endpoint on it
	r.nothingLeft()
	require.ErrorIs(t, r.Reap(time.Now()), unix.ENOSPC)

	room()
	require.NoError(t, r.Reap(time.Now()))
	r.restart()
	r.nothingLeft()
}

// A network whose making failed at its last write leaves nothing either.
func TestDiskFullMeanwhile(t *testing.T) {
	r, full := newSmallRig(t)
	room := func() {}
	r.mapper.Fail = func(op string, _ portmap.Publication) error {
		if op == "AddNetwork" {
			room = full()
		}
		return nil
	}
	assert.Contains(t, r.refused("CreateNetwork", networkOf(1, false, nil)), "no space left on device")
	r.nothingLeft()
	r.mapper.Fail = nil
	room()
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.restart()
	r.nothingLeft()
}

// A crash while the file is behind brings back what is gone; the engine, which
// has forgotten it, is not there to take it away. What is dead holds nothing,
// and a network can be made again by whoever asks for its ID or cleans up.
func TestCrashWhileTheFileIsBehind(t *testing.T) {
	r, full := newSmallRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	r.run(1, 10, 2, false, "/sb1")
	r.ok("ProgramExternalConnectivity", programOf(1, 10, udp("", 53, 53)))
	room := full()
	r.ok("Leave", endpointOf(1, 10))
	r.ok("DeleteEndpoint", endpointOf(1, 10))
	require.ErrorIs(t, r.store.Close(), unix.ENOSPC)
	room()
	r.open()
	require.NoError(t, r.Restore())
	assert.Empty(t, r.published(10))
	assert.Empty(t, r.pub.heldBy)
	require.NoError(t, r.Reap(time.Now().Add(2*tombstoneAge)))
	assert.Empty(t, r.store.Endpoints())
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.nothingLeft()
}

// A guard that stands for forwarding that could not be turned on goes again: it
// would drop what others forward.
func TestFullDiskBehindTheGuard(t *testing.T) {
	forwardingOff(t)
	r, full := newSmallRig(t)
	room := func() {}
	r.mapper.Fail = func(op string, _ portmap.Publication) error {
		if op == "Guard" {
			r.mapper.Fail = nil
			room = full()
		}
		return nil
	}
	assert.Contains(t, r.refused("CreateNetwork", networkOf(1, true, nil)), "no space left on device")
	ipv4, ipv6, err := r.mapper.Guarded()
	require.NoError(t, err)
	assert.False(t, ipv4 || ipv6)
	assert.Equal(t, "0", sysctl(t, "ipv4/ip_forward"))
	room()
	r.ok("CreateNetwork", networkOf(2, true, nil))
	ipv4, ipv6, err = r.mapper.Guarded()
	require.NoError(t, err)
	assert.True(t, ipv4 && ipv6)
	r.ok("DeleteNetwork", object{"NetworkID": id(2)})
	r.nothingLeft()
}
