package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/netnstest"
)

// programName has the test binary be the program.
const programName = "portolan"

// daemonProcess is `portolan daemon` in a process of its own.
type daemonProcess struct {
	socket string
	cmd    *exec.Cmd
	log    syncBuffer
}

func startDaemonProcess(t *testing.T, args ...string) *daemonProcess {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	dir := shortDir(t)
	d := &daemonProcess{socket: filepath.Join(dir, "portolan.sock"), cmd: exec.Command(program)}
	d.cmd.Args = append([]string{programName, "daemon", "--socket", d.socket, "--state-dir", filepath.Join(dir, "state"), "--ip-forward=false"}, args...)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	// Its tasks look at what is the network namespace's.
	require.NoError(t, netnstest.NewHost(t).Do(d.cmd.Start))
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
		if t.Failed() {
			t.Logf("the daemon says:\n%s", &d.log)
		}
	})
	require.Eventually(t, func() bool {
		_, err := findDaemon(t.Context(), d.socket)
		return err == nil
	}, 20*time.Second, 5*time.Millisecond, "the daemon does not answer: %s", &d.log)
	return d
}

// threads are the status files of all threads.
func (d *daemonProcess) threads(t *testing.T) (all []string) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.cmd.Process.Pid))
	require.NoError(t, err)
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil { // it may have ended
			all = append(all, string(text))
		}
	}
	require.NotEmpty(t, all)
	return all
}

// The test runs with all of root's capabilities, or with a managed plugin's.
func TestADaemonKeepsTheCapabilitiesThatItNeeds(t *testing.T) {
	d := startDaemonProcess(t)
	var want uint64
	for _, c := range []int{unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH} {
		want |= 1 << c
	}
	want &= ownCapabilities(t)
	for _, status := range d.threads(t) {
		for _, line := range []string{
			fmt.Sprintf("CapPrm:\t%016x\n", want), fmt.Sprintf("CapEff:\t%016x\n", want),
			"CapInh:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n",
		} {
			assert.Contains(t, status, line)
		}
	}
}

func ownCapabilities(t *testing.T) uint64 {
	text, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	_, after, ok := strings.Cut(string(text), "\nCapPrm:\t")
	require.True(t, ok)
	var set uint64
	_, err = fmt.Sscanf(after, "%x", &set)
	require.NoError(t, err)
	return set
}
