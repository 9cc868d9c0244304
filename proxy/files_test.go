package proxy

import (
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// limitFiles lets this process open so many files until the test ends.
func limitFiles(t *testing.T, n uint64) {
	t.Helper()
	var old unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: old.Max}))
	t.Cleanup(func() { assert.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) })
}

func TestTheLastFilesAreKeptBack(t *testing.T) {
	for limit, first := range map[uint64]int{60: 45, 256: 192, 400: 336, 20000: 19936} {
		limitFiles(t, limit)
		assert.False(t, KeptBack(first-1), limit)
		assert.True(t, KeptBack(first), limit)
	}
}

// fill opens files until those that are kept back are left.
func fill(t *testing.T) {
	t.Helper()
	for {
		fd, err := unix.Dup(0)
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, unix.Close(fd)) })
		if KeptBack(fd + 1) {
			return
		}
	}
}

// Half of the files are for connections, and no port gets more than half of what
// it leaves to others: of 60 files, two ports get 16 each.
func TestConnectionsTakeHalfOfTheFiles(t *testing.T) {
	noLeaks(t)
	limitFiles(t, 400)
	const fit, others = 16, 400/2 - 60
	var files Files
	files.taken.Store(others) // clients and backends are this process's as well
	var log lineCount
	backend := listenTCP(t, "tcp", "127.0.0.1")
	var frontends []*TCP // they share it
	for range 3 {
		p := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), to(addrPort(backend.Addr())), TCPConfig{Files: &files, Log: log.logger()})
		t.Cleanup(func() { assert.NoError(t, p.Close()) })
		frontends = append(frontends, p)
	}
	var clients []net.Conn
	for i := range fit {
		c := dialTCP(t, addrPort(frontends[i%2].Addr()))
		clients = append(clients, c)
		b := acceptTCP(t, backend)
		write(t, c, "hello")
		requireRead(t, b, "hello")
	}
	start := time.Now()
	for range 5 {
		requireRefused(t, addrPort(frontends[0].Addr()))
	}
	log.requireSparse(t, start)
	requireRefused(t, addrPort(frontends[1].Addr()))

	// A port that has none is served all the same.
	one := dialTCP(t, addrPort(frontends[2].Addr()))
	accepted := acceptTCP(t, backend)
	write(t, accepted, "welcome")
	requireRead(t, one, "welcome")
	abortTCP(one)
	eventually(t, func() bool { return files.taken.Load() == others+fit*filesOfConn }, "the files of a connection that has ended")

	// One ends, and there is room for one.
	require.NoError(t, clients[0].(*net.TCPConn).SetLinger(0))
	require.NoError(t, clients[0].Close())
	eventually(t, func() bool { return files.taken.Load() == others+(fit-1)*filesOfConn }, "the files of a connection that has ended")
	c := dialTCP(t, addrPort(frontends[0].Addr()))
	b := acceptTCP(t, backend)
	write(t, b, "welcome")
	requireRead(t, c, "welcome")

	for _, p := range frontends {
		require.NoError(t, p.Close())
	}
	assert.EqualValues(t, others, files.taken.Load())
}

func TestConnectionsLeaveWhatIsKeptBack(t *testing.T) {
	noLeaks(t)
	limitFiles(t, 400)
	var files Files
	p := ServeTCP(listenTCP(t, "tcp", "127.0.0.1"), toNone, TCPConfig{Files: &files})
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	fill(t)
	requireRefused(t, addrPort(p.Addr()))
	assert.Zero(t, files.taken.Load())
	var opened []*os.File
	for range 40 {
		f, err := os.Open(os.DevNull)
		require.NoError(t, err)
		opened = append(opened, f)
	}
	for _, f := range slices.Backward(opened) {
		require.NoError(t, f.Close())
	}
}

// Where there is no room for one more flow the idlest goes, as with MaxFlows.
func TestFlowsTakeHalfOfTheFiles(t *testing.T) {
	noLeaks(t)
	limitFiles(t, 200)
	var files Files
	e := startEcho(t, "127.0.0.1")
	p := startUDP(t, localPath("udp"), to(e.addr()), UDPConfig{Files: &files})
	var log lineCount
	others := startUDP(t, localPath("udp"), to(e.addr()), UDPConfig{Files: &files, Log: log.logger()})
	files.taken.Store(100 - 5)
	var clients []*net.UDPConn
	for range 5 {
		c := clientUDP(t, localPath("udp"))
		clients = append(clients, c)
		exchange(t, c, addrPort(p.Addr()), []byte("hello"))
	}
	assert.Equal(t, 2, p.flowCount(), "half of what is left to others")
	assert.Equal(t, int64(97), files.taken.Load())
	exchange(t, clients[0], addrPort(p.Addr()), []byte("again"))

	// One that has no flow gets one, and has none to drop where nothing is left.
	files.taken.Add(3)
	sendUDP(t, clientUDP(t, localPath("udp")), addrPort(others.Addr()), []byte("lost"))
	eventually(t, func() bool { return log.n.Load() == 1 }, "a line in the log")
	require.NoError(t, p.Close())
	files.taken.Add(-3)
	eventually(t, func() bool { return files.taken.Load() == 95 }, "the files of flows that have ended")
	exchange(t, clients[0], addrPort(others.Addr()), []byte("hello"))
	require.NoError(t, others.Close())
	assert.Equal(t, int64(95), files.taken.Load())
}
