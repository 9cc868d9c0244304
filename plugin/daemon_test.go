package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/internal/store"
)

// syncBuffer is a log that may be read while a daemon writes it.
type syncBuffer struct {
	mu sync.Mutex // guards below
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// runningDaemon is `portolan daemon` in this process.
type runningDaemon struct {
	socket, stateDir string
	log              syncBuffer
	status           chan int
}

func startDaemon(t *testing.T, args ...string) *runningDaemon {
	t.Helper()
	dir := shortDir(t)
	d := &runningDaemon{
		socket:   filepath.Join(dir, "portolan.sock"),
		stateDir: filepath.Join(dir, "state"),
		status:   make(chan int, 1),
	}
	args = append([]string{"daemon", "--socket", d.socket, "--state-dir", d.stateDir, "--ip-forward=false"}, args...)
	go d.run(args)
	t.Setenv("PORTOLAN_SOCKET", d.socket)
	require.Eventually(t, func() bool {
		_, err := findDaemon(context.Background(), d.socket)
		return err == nil
	}, 20*time.Second, 5*time.Millisecond, "the daemon does not answer: %s", &d.log)
	return d
}

func (d *runningDaemon) run(args []string) {
	d.status <- run(context.Background(), args, &d.log, &d.log)
}

// stop sends SIGTERM and waits as long as is promised.
func (d *runningDaemon) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	select {
	case status := <-d.status:
		require.Equal(t, 0, status, d.log.String())
	case <-time.After(stopWithin):
		require.Fail(t, "the daemon does not stop", d.log.String())
	}
}

func TestDaemonFromStartToEnd(t *testing.T) {
	defer goleak.VerifyNone(t)
	d := startDaemon(t)

	noEngine(t)
	stdout, stderr, status := portolan(t, "ls")
	require.Equal(t, 0, status, stderr)
	assert.Equal(t, "PORTS   ENDPOINT   NETWORK   CONTAINER\n", stdout)
	stdout, _, status = portolan(t, "version")
	require.Equal(t, 0, status)
	assert.Contains(t, stdout, "daemon   dev at "+d.socket+"\nmapper   ")

	stdout, _, status = portolan(t, "version", "--features")
	require.Equal(t, 0, status)
	assert.Contains(t, stdout, "\nother hosts, containers, IPv4 of this host")

	d.stop(t)
	assert.NoFileExists(t, d.socket)
	assert.Contains(t, d.log.String(), "stopping; rules stay in place")
	_, err := namespaceHolder()
	require.ErrorIs(t, err, errNoHolder)
}

func TestSecondDaemonNamesTheFirst(t *testing.T) {
	first := startDaemon(t)
	defer first.stop(t)
	dir := shortDir(t)
	_, stderr, status := portolan(t, "daemon", "--socket", filepath.Join(dir, "p.sock"), "--state-dir", filepath.Join(dir, "state"))
	assert.Equal(t, 1, status)
	assert.Regexp(t, `^portolan daemon: another portolan daemon serves this network namespace: pid \d+, socket `+first.socket+`, state `+first.stateDir+"\n$", stderr)
	assert.NoDirExists(t, filepath.Join(dir, "state"), "the second one has touched nothing")
}

func TestDaemonRefusesAStateThatIsInUse(t *testing.T) {
	dir := shortDir(t)
	st, err := store.Open(dir, nil)
	require.NoError(t, err)
	defer st.Close()
	socket := filepath.Join(dir, "p.sock")
	_, stderr, status := portolan(t, "daemon", "--socket", socket, "--state-dir", dir)
	assert.Equal(t, 1, status)
	assert.Contains(t, stderr, "portolan daemon: state directory "+dir+" is in use by pid ")
	assert.NoFileExists(t, socket)
}

func TestDaemonRefusesASocketThatIsInUse(t *testing.T) {
	dir := shortDir(t)
	ln, err := listenSocket(filepath.Join(dir, "p.sock"), ownerOnly)
	require.NoError(t, err)
	defer ln.Close()
	_, stderr, status := portolan(t, "daemon", "--socket", filepath.Join(dir, "p.sock"), "--state-dir", filepath.Join(dir, "state"))
	assert.Equal(t, 1, status)
	assert.Contains(t, stderr, "another process answers there (pid ")
}

func TestDaemonNeedsNetAdmin(t *testing.T) {
	require.NoError(t, needNetAdmin())
	var err error
	asNobody(t, func() error {
		err = needNetAdmin()
		return nil
	})
	require.ErrorContains(t, err, "needs CAP_NET_ADMIN")
}

func TestASecondSignalEndsTheWait(t *testing.T) {
	stuck := make(chan struct{})
	defer close(stuck)
	began := make(chan struct{})
	status := make(chan error, 1)
	log := &syncBuffer{}
	go report(context.Background(), func(ctx context.Context) error {
		return untilSignal(ctx, newLogFlags().logger(log), "stopping", stopWithin, func(context.Context) error {
			close(began)
			<-stuck
			return nil
		})
	}, status)
	<-began
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	require.Eventually(t, func() bool { return log.String() != "" }, 5*time.Second, time.Millisecond)
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
	require.EqualError(t, <-status, "stopped in disorder by a second signal: terminated")
}
