package load

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// serve goes on until the process ends.
var serve = sync.OnceFunc(func() { go func() { panic(Serve()) }() })

// The server's ports are fixed; the namespace is the test's.
func TestRun(t *testing.T) {
	serve()
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:7001")
		return err == nil && c.Close() == nil
	}, 20*time.Second, time.Millisecond)
	for _, host := range []string{"127.0.0.1", "::1"} {
		for _, s := range []Spec{
			{Kind: UDP, Clients: 4},
			{Kind: UDP, Clients: 4, Window: 4},
			{Kind: TCP, Clients: 4},
			{Kind: UDP, Clients: 4, Unconnected: true},
			{Kind: Connect, Clients: 4},
			{Kind: Connect, Clients: 4, Orderly: true, Every: 20 * time.Millisecond},
			{Kind: Bulk},
		} {
			port := uint16(TCPPort)
			if s.Kind == Bulk {
				port = SinkPort
			}
			s.To, s.For = netip.AddrPortFrom(netip.MustParseAddr(host), port), 100*time.Millisecond
			var same Spec
			require.NoError(t, same.UnmarshalArgument(s.MarshalArgument()))
			require.Equal(t, s, same)
			r, err := Run(s)
			for r.Answers == 0 && s.Kind != Bulk && err == nil && s.For < 10*time.Second { // the machine is busy
				s.For *= 2
				r, err = Run(s)
			}
			require.NoError(t, err, "%+v", s)
			assert.GreaterOrEqual(t, r.Took, s.For)
			if s.Kind == Bulk {
				assert.Positive(t, r.Gbits())
				continue
			}
			assert.Greater(t, r.Rate(), 1.0)
			assert.Positive(t, r.P99)
			assert.Zero(t, r.Lost)
			var sum int64
			for _, n := range r.Windows {
				sum += n
			}
			if s.Every > 0 {
				assert.Equal(t, r.Answers, sum, "windows: %v", r.Windows)
				assert.Greater(t, len(r.Windows), 1)
			}
		}
	}
}

// What is not answered is lost, and counted.
func TestLost(t *testing.T) {
	silent, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer silent.Close()
	to := silent.LocalAddr().(*net.UDPAddr).AddrPort()
	r, err := Run(Spec{Kind: UDP, Clients: 2, Window: 3, To: to, For: 3 * patience})
	require.NoError(t, err)
	assert.Zero(t, r.Answers)
	assert.GreaterOrEqual(t, r.Lost, int64(6))

	_, err = Run(Spec{Kind: TCP, To: netip.MustParseAddrPort("127.0.0.1:9"), For: time.Second})
	require.ErrorContains(t, err, "connection ended")

	r, err = Run(Spec{Kind: Connect, To: netip.MustParseAddrPort("127.0.0.1:9"), For: 50 * time.Millisecond})
	require.NoError(t, err, "a connection that is refused is lost, and the next is tried")
	assert.Zero(t, r.Answers)
	assert.Greater(t, r.Lost, int64(1))
}

// Clients that close keep their ports in TIME_WAIT, those that reset do not.
func TestOrderly(t *testing.T) {
	serve()
	waiting := func(from string) int {
		out, err := exec.Command("ss", "-Htan", "state", "time-wait", "src", from).Output()
		require.NoError(t, err)
		return strings.Count(string(out), "\n")
	}
	spec := Spec{Kind: Connect, Clients: 2, To: netip.MustParseAddrPort("127.0.0.1:7000"), For: 100 * time.Millisecond}
	before := waiting("127.0.0.1")
	var answers int64
	require.Eventually(t, func() bool {
		r, err := Run(spec)
		answers = r.Answers
		return err == nil && answers > 0
	}, 20*time.Second, time.Millisecond)
	assert.Equal(t, before, waiting("127.0.0.1"), "after %d resets", answers)
	spec.Orderly = true
	_, err := Run(spec)
	require.NoError(t, err)
	assert.Positive(t, waiting("127.0.1.0/24"))
}
