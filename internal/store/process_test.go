package store

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What a process that is started from this program does instead of the tests,
// and in which directory.
const (
	roleVariable = "PORTOLAN_STORE_TEST_ROLE"
	dirVariable  = "PORTOLAN_STORE_TEST_DIR"
)

func TestMain(m *testing.M) {
	dir := os.Getenv(dirVariable)
	var err error
	switch role := os.Getenv(roleVariable); role {
	case "", "mounted":
		os.Exit(m.Run())
	case "hold":
		err = hold(dir)
	case "write":
		err = writeForever(dir)
	default:
		err = fmt.Errorf("no role %q", role)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// hold keeps the store open until it is killed.
func hold(dir string) error {
	if _, err := Open(dir, nil); err != nil {
		return err
	}
	fmt.Println("open")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// writeForever puts endpoints and prints how many are there, until it is
// killed.
func writeForever(dir string) error {
	s, err := Open(dir, nil)
	if err != nil {
		return err
	}
	for n := len(s.Endpoints()); ; {
		if err := s.PutEndpoint(endpoint(strconv.Itoa(n), "n")); err != nil {
			return err
		}
		n++
		fmt.Println(n)
	}
}

// start runs a role in a process of its own, which ends with the test.
func start(t *testing.T, role, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+role, dirVariable+"="+dir)
	cmd.Stderr = os.Stderr
	_, err := cmd.StdinPipe() // so that it does not read ours
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { kill(cmd) })
	return cmd, bufio.NewScanner(out)
}

// kill ends cmd as a crash does. Its result is always an error.
func kill(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func TestLockedByAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	cmd, out := start(t, "hold", dir)
	require.True(t, out.Scan(), "the other process did not open the store")

	_, err := Open(dir, nil)
	require.ErrorIs(t, err, ErrLocked)
	require.EqualError(t, err, fmt.Sprintf("state directory %s is in use by pid %d", dir, cmd.Process.Pid))
	require.ErrorIs(t, Remove(dir), ErrLocked)

	kill(cmd)
	s := openStore(t, dir)
	_, err = Open(dir, nil)
	require.EqualError(t, err, fmt.Sprintf("state directory %s is in use by pid %d", dir, os.Getpid()))

	require.NoError(t, os.Truncate(filepath.Join(dir, lockName), 0))
	_, err = Open(dir, nil)
	require.ErrorIs(t, err, ErrLocked)
	require.EqualError(t, err, fmt.Sprintf("state directory %s is in use by another process", dir))
	require.NoError(t, s.Close())
	openStore(t, dir)
}

// A lock file that was removed after we opened it keeps nobody out.
func TestLockOfARemovedFile(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, lockName))
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, Remove(dir))
	require.NoDirExists(t, dir)
	current, err := lockFile(dir, f)
	require.NoError(t, err)
	require.False(t, current, "no lock file")

	other := openStore(t, dir)
	current, err = lockFile(dir, f)
	require.NoError(t, err)
	require.False(t, current, "another lock file")
	require.NoError(t, other.Close())
}

func TestKilledWhileWriting(t *testing.T) {
	dir := t.TempDir()
	for round := 1; round <= 5; round++ {
		cmd, out := start(t, "write", dir)
		last := 0
		for i := 0; i < 7*round && out.Scan(); i++ {
			var err error
			last, err = strconv.Atoi(out.Text())
			require.NoError(t, err)
		}
		require.NoError(t, cmd.Process.Kill())
		for out.Scan() { // what it had said by then
			var err error
			last, err = strconv.Atoi(out.Text())
			require.NoError(t, err)
		}
		kill(cmd)
		s, err := Open(dir, nil)
		require.NoError(t, err)
		require.Empty(t, s.Damaged())
		require.GreaterOrEqual(t, len(s.Endpoints()), last, "a write was acknowledged and is not there")
		require.LessOrEqual(t, len(s.Endpoints()), last+1)
		require.NoError(t, s.Close())
	}
}

// mounted says whether the test may mount: it runs in a mount namespace of its
// own. If not, it runs the test again in one, and reports how that ended.
func mounted(t *testing.T) bool {
	t.Helper()
	if os.Getenv(roleVariable) == "mounted" {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), roleVariable+"=mounted")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if uid := os.Geteuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
	return false
}

// mountSmall mounts a file system with room for the small states of the tests.
func mountSmall(t *testing.T) string {
	t.Helper()
	require.NoError(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

func TestFullDisk(t *testing.T) {
	if !mounted(t) {
		return
	}
	dir := mountSmall(t)
	filler := filepath.Join(dir, "filler")
	s := openStore(t, dir)
	require.NoError(t, s.PutEndpoint(endpoint("e", "n")))
	want := contentsOf(s)
	before, err := os.ReadFile(filepath.Join(dir, stateName))
	require.NoError(t, err)

	big := endpoint("big", "n")
	big.Sandbox = strings.Repeat("x", 40<<10)
	require.NoError(t, os.WriteFile(filler, make([]byte, 20<<10), 0o600))
	require.ErrorIs(t, s.PutEndpoint(big), unix.ENOSPC)
	require.Equal(t, want, contentsOf(s))
	after, err := os.ReadFile(filepath.Join(dir, stateName))
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))

	// Nothing of the failed write takes space, so a small one succeeds.
	require.NoError(t, s.PutNetwork(network("n")))
	require.NoError(t, os.Remove(filler))
	require.NoError(t, s.PutEndpoint(big))
	require.NoError(t, s.DeleteEndpoint("big"))
	require.NoError(t, s.Close())

	// A daemon that could not write does not start, and leaves damage for one
	// that can.
	require.ErrorIs(t, os.WriteFile(filler, make([]byte, 64<<10), 0o600), unix.ENOSPC)
	_, err = Open(dir, nil)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, "write to state directory: ")
	require.NoError(t, os.WriteFile(filepath.Join(dir, stateName), []byte("damaged"), 0o600))
	require.ErrorIs(t, os.WriteFile(filler, make([]byte, 64<<10), 0o600), unix.ENOSPC)
	_, err = Open(dir, nil)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Equal(t, []string{"filler", stateName}, names(t, dir))
	require.NoError(t, os.Remove(filler))
	requireSetAside(t, dir, []byte("damaged"))
}

func TestReadOnly(t *testing.T) {
	if !mounted(t) {
		return
	}
	dir := mountSmall(t)
	s := openStore(t, dir)
	require.NoError(t, s.PutEndpoint(endpoint("e", "n")))
	require.NoError(t, s.Close())
	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err := Open(dir, nil)
	require.ErrorIs(t, err, unix.EROFS)
	_, err = Open(filepath.Join(dir, "below"), nil)
	require.ErrorIs(t, err, unix.EROFS)
	require.ErrorIs(t, Remove(dir), unix.EROFS)
	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
	require.Len(t, openStore(t, dir).Endpoints(), 1)
}

// A managed plugin's directory is a mount point, which stays.
func TestRemoveOfAMountPoint(t *testing.T) {
	if !mounted(t) {
		return
	}
	dir := mountSmall(t)
	s := openStore(t, dir)
	require.NoError(t, s.PutEndpoint(endpoint("e", "n")))
	require.NoError(t, s.Close())
	require.NoError(t, Remove(dir))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}
