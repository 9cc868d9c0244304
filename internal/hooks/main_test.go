package hooks

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/bpfhost"
	"github.com/portolan/portolan/internal/netnstest"
)

// asChild is set in the environment of a process that attaches and waits to be
// killed.
const asChild = "PORTOLAN_HOOKSTEST_CHILD"

func TestMain(m *testing.M) {
	if cgroup := os.Getenv(asChild); cgroup != "" {
		os.Exit(child(cgroup))
	}
	netnstest.Main(m)
}

// child attaches, publishes a port of the container, says which programs it has
// attached, and waits.
func child(cgroup string) int {
	h, err := Open(cgroup, nil)
	if err == nil {
		err = h.Set(unix.IPPROTO_TCP, netip.IPv6Unspecified(), hostPort, hostPort, netip.AddrPortFrom(container6, containerPort), netip.Addr{})
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	var ids []string
	for _, p := range h.programs() {
		info, err := p.Info()
		if err != nil {
			fmt.Println(err)
			return 1
		}
		id, _ := info.ID()
		ids = append(ids, strconv.Itoa(int(id)))
	}
	fmt.Println(strings.Join(ids, " "))
	time.Sleep(time.Minute)
	return 1
}

// startChild returns when the child has attached, with its programs.
func startChild(t *testing.T, cgroup string) (*exec.Cmd, []ebpf.ProgramID) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asChild+"="+cgroup)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	var ids []ebpf.ProgramID
	for word := range strings.FieldsSeq(line) {
		id, err := strconv.Atoi(word)
		require.NoError(t, err, "the child says: %s", line)
		ids = append(ids, ebpf.ProgramID(id))
	}
	require.Len(t, ids, 4)
	return cmd, ids
}

// testCgroup is the root of the hierarchy: where the host has it, or mounted for
// the test.
func testCgroup(t testing.TB) string {
	t.Helper()
	if dir, err := bpfhost.FindRoot(); err == nil {
		return dir
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("portolan-test", dir, "cgroup2", 0, ""), "mount cgroup2")
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// attached are the programs at the root of the hierarchy, by the hook.
func attached(t testing.TB, cgroup string) (ids []ebpf.ProgramID) {
	t.Helper()
	f, err := os.Open(cgroup)
	require.NoError(t, err)
	defer f.Close()
	for _, hook := range []ebpf.AttachType{
		ebpf.AttachCgroupInet6GetPeername, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP6Sendmsg,
	} {
		got, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: hook})
		require.NoError(t, err)
		for _, p := range got.Programs {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// requireGone waits until the kernel has freed programs: detached, and unloaded.
func requireGone(t *testing.T, cgroup string, ids []ebpf.ProgramID) {
	t.Helper()
	require.NotSubset(t, attached(t, cgroup), ids[:1])
	for _, id := range ids {
		require.NotContains(t, attached(t, cgroup), id)
		require.Eventually(t, func() bool {
			p, err := ebpf.NewProgramFromID(id)
			if err == nil {
				p.Close()
			}
			return err != nil
		}, 10*time.Second, 10*time.Millisecond, "program %d is still loaded", id)
	}
}
