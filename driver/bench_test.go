package driver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// portsEach is how many ports every endpoint of BenchmarkOneMore publishes. None
// of them are neighbours, so that each is a mapping.
const portsEach = 32

// BenchmarkOneMore publishes portsEach ports of one more endpoint through the
// driver's handler, with sockets, rules and conntrack, beside so many endpoints.
// Memory keeps the state where a sync costs nothing, disk where tests keep
// theirs. An operation is Program; median-ms is of one, and run-ms that of
// CreateEndpoint, Join and Program together.
func BenchmarkOneMore(b *testing.B) {
	for _, where := range []string{"memory", "disk"} {
		for _, endpoints := range []int{0, 500} {
			b.Run(fmt.Sprintf("%s/%d", where, endpoints), func(b *testing.B) { benchOneMore(b, where, endpoints) })
		}
	}
}

func benchOneMore(b *testing.B, where string, endpoints int) {
	r := newRealRig(b, where)
	const perNetwork = 250 // as many as its subnet has room for
	last := endpoints / perNetwork
	for n := 1; n <= last+1; n++ {
		r.ok("CreateNetwork", networkOf(n, false, nil))
	}
	for e := range endpoints {
		n := 1 + e/perNetwork
		r.run(n, e, 2+e%perNetwork, false, fmt.Sprintf("/sb%d", e))
		r.ok("ProgramExternalConnectivity", separatePorts(n, e, 1024+e*portsEach*2))
	}
	one := 9999
	program := text(b, separatePorts(last+1, one, 17001)) // in the midst of the others
	var took, run []time.Duration
	for b.Loop() {
		begin := time.Now()
		r.run(last+1, one, 2, false, "/more")
		before := time.Now()
		r.call(b, "ProgramExternalConnectivity", program)
		now := time.Now()
		took, run = append(took, now.Sub(before)), append(run, now.Sub(begin))
		b.StopTimer()
		r.ok("Leave", endpointOf(last+1, one))
		r.ok("DeleteEndpoint", endpointOf(last+1, one))
		b.StartTimer()
	}
	b.ReportMetric(median(took), "median-ms")
	b.ReportMetric(median(run), "run-ms")
}

// separatePorts asks for portsEach udp ports from first on, every other number.
func separatePorts(n, e, first int) object {
	var bs []object
	for i := range portsEach {
		p := first + 2*i
		bs = append(bs, udp("", p, 1+i))
	}
	return programOf(n, e, bs...)
}

// newRealRig is a rig with the Publisher and the Mapper of a daemon.
func newRealRig(b *testing.B, where string) *rig {
	b.Helper()
	r := &rig{t: b, dir: b.TempDir()}
	if where == "memory" {
		dir, err := os.MkdirTemp("/dev/shm", "portolan")
		require.NoError(b, err)
		b.Cleanup(func() { _ = os.RemoveAll(dir) })
		r.dir = dir
	}
	s, err := store.Open(r.dir, nil)
	require.NoError(b, err)
	mapper, err := portmap.NewNFTables(nil)
	require.NoError(b, err)
	pub := portmap.NewPublisher(portmap.PublisherConfig{Mapper: mapper})
	r.Driver = New(Config{Store: s, Mapper: mapper, Publisher: pub, IPForward: true})
	r.h = r.Handler()
	b.Cleanup(func() {
		require.NoError(b, pub.Close())
		require.NoError(b, mapper.Load(nil, nil))
		require.NoError(b, mapper.Close())
		require.NoError(b, Cleanup(nil, "", s.Sysctls()))
		require.NoError(b, s.Close())
	})
	require.NoError(b, r.Restore())
	return r
}

// call is ok for a request that is text already.
func (r *rig) call(b *testing.B, method, body string) {
	b.Helper()
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/NetworkDriver."+method, strings.NewReader(body)))
	require.Equal(b, http.StatusOK, w.Code)
	require.NotContains(b, w.Body.String(), "Err")
}

func text(b *testing.B, body object) string {
	b.Helper()
	out, err := json.Marshal(body)
	require.NoError(b, err)
	return string(out)
}

// median is in milliseconds.
func median(ds []time.Duration) float64 {
	slices.Sort(ds)
	return float64(ds[len(ds)/2]) / float64(time.Millisecond)
}
