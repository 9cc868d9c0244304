package proxy

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// patience is how long a test waits for what must happen. It is never asserted
// that something took less.
const patience = time.Minute

func TestMain(m *testing.M) {
	if what := os.Getenv(serveEnv); what != "" {
		serveForBenchmarks(what)
		return
	}
	if what := os.Getenv(lorisEnv); what != "" {
		loris(what)
		return
	}
	goleak.VerifyTestMain(m)
}

// noLeaks fails the test if a goroutine outlives what its later cleanups close.
// It is called first.
func noLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
}

// path is a way from a client to a backend through a socket of some kind.
type path struct {
	network string // tcp, tcp4, …
	listen  string // the frontend's address
	client  string // the address that the client uses
	backend string // the backend's address
}

func (p path) String() string {
	return p.network + " " + p.listen + " by " + p.client + " to " + p.backend
}

// paths are the networks of proto, wildcard and specific, with clients and
// backends of both families.
func paths(proto string) []path {
	var all []path
	for _, f := range []path{
		{proto, "127.0.0.1", "127.0.0.1", ""},
		{proto, "::1", "::1", ""},
		{proto, "::", "127.0.0.1", ""}, // dual-stack
		{proto, "::", "127.0.0.2", ""},
		{proto, "::", "::1", ""},
		{proto + "4", "127.0.0.1", "127.0.0.1", ""},
		{proto + "4", "0.0.0.0", "127.0.0.1", ""},
		{proto + "4", "0.0.0.0", "127.0.0.2", ""},
		{proto + "6", "::1", "::1", ""},
		{proto + "6", "::", "::1", ""}, // IPV6_V6ONLY
	} {
		for _, backend := range []string{"127.0.0.1", "::1"} {
			f.backend = backend
			all = append(all, f)
		}
	}
	return all
}

// eachPath runs f as a subtest for every path of proto.
func eachPath(t *testing.T, proto string, f func(*testing.T, path)) {
	for _, p := range paths(proto) {
		t.Run(p.String(), func(t *testing.T) {
			noLeaks(t)
			f(t, p)
		})
	}
}

// localPath is the plainest path of proto.
func localPath(proto string) path { return path{proto, "127.0.0.1", "127.0.0.1", "127.0.0.1"} }

func to(backend netip.AddrPort) BackendFunc {
	return func(netip.AddrPort) (netip.AddrPort, bool) { return backend, true }
}

func toNone(netip.AddrPort) (netip.AddrPort, bool) { return netip.AddrPort{}, false }

// at is the address of host with the port of a.
func at(host string, a net.Addr) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(host), addrPort(a).Port())
}

// eventually waits until ok.
func eventually(t *testing.T, ok func() bool, msg string) {
	t.Helper()
	require.Eventually(t, ok, patience, time.Millisecond, msg)
}

// get receives from c.
func get[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}

func TestBackoffDoublesToItsBound(t *testing.T) {
	var b backoff
	for _, want := range []time.Duration{5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000} {
		require.Equal(t, want*time.Millisecond, b.next())
	}
}
