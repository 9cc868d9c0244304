package driver

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// withRequest are the methods whose body must be a request.
var withRequest = []string{
	"/NetworkDriver.GwAllocCheck", "/NetworkDriver.CreateNetwork", "/NetworkDriver.DeleteNetwork",
	"/NetworkDriver.CreateEndpoint", "/NetworkDriver.EndpointOperInfo", "/NetworkDriver.DeleteEndpoint",
	"/NetworkDriver.Join", "/NetworkDriver.Leave",
	"/NetworkDriver.ProgramExternalConnectivity", "/NetworkDriver.RevokeExternalConnectivity",
	"/NetworkDriver.AllocateNetwork", "/NetworkDriver.FreeNetwork",
	"/NetworkDriver.DiscoverNew", "/NetworkDriver.DiscoverDelete", "/Portolan.SetOwner",
}

func TestBadBodies(t *testing.T) {
	r := newRig(t)
	for _, path := range withRequest {
		for _, body := range []string{
			"", " \n", "x", `"text"`, "[]", "{", "{}{}", "{} trailing", `{"NetworkID":7}`, `{"Options":7,"EndpointID":7,"DiscoveryType":""}`,
		} {
			status, answer := r.post(path, body)
			if body == `{"NetworkID":7}` && (strings.Contains(path, "Discover") || strings.Contains(path, "GwAlloc")) {
				continue // not a field of theirs
			}
			assert.Equal(t, http.StatusBadRequest, status, "%s %q", path, body)
			assert.NotEmpty(t, answer["Err"], "%s %q", path, body)
		}
	}
	r.nothingLeft()
}

func TestMissingIDs(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct{ method, body, want string }{
		{"CreateNetwork", "{}", "no NetworkID"},
		{"CreateNetwork", "null", "no NetworkID"},
		{"DeleteNetwork", "{}", "no NetworkID"},
		{"AllocateNetwork", "{}", "no NetworkID"},
		{"CreateEndpoint", `{"EndpointID":"e"}`, "no NetworkID"},
		{"CreateEndpoint", `{"NetworkID":"n"}`, "no EndpointID"},
		{"Join", `{"NetworkID":"n"}`, "no EndpointID"},
		{"Join", `{"NetworkID":"n","EndpointID":"e"}`, "no SandboxKey"},
		{"Leave", `{"NetworkID":"n"}`, "no EndpointID"},
		{"DeleteEndpoint", `{"EndpointID":"e"}`, "no NetworkID"},
		{"EndpointOperInfo", `{}`, "no NetworkID"},
		{"ProgramExternalConnectivity", `{"NetworkID":"n"}`, "no EndpointID"},
		{"RevokeExternalConnectivity", `{"NetworkID":"n"}`, "no EndpointID"},
	} {
		status, answer := r.post("/NetworkDriver."+tt.method, tt.body)
		assert.Equal(t, http.StatusBadRequest, status, "%s %s", tt.method, tt.body)
		assert.Equal(t, tt.want, answer["Err"], "%s %s", tt.method, tt.body)
	}
}

func TestBodyTooLarge(t *testing.T) {
	r := newRig(t)
	r.maxBody = 1000
	for _, body := range []string{
		`{"NetworkID":"` + strings.Repeat("n", 1000) + `"}`,
		`{"NetworkID":"n","EndpointID":"e"}` + strings.Repeat(" ", 1000),
	} {
		for _, method := range []string{"Leave", "ProgramExternalConnectivity"} {
			for _, length := range []int64{int64(len(body)), -1} { // -1 comes in chunks, and is read until it is too much
				request := httptest.NewRequest(http.MethodPost, "/NetworkDriver."+method, strings.NewReader(body))
				request.ContentLength = length
				w := httptest.NewRecorder()
				r.h.ServeHTTP(w, request)
				assert.Equal(t, http.StatusBadRequest, w.Code, "%s %d", method, length)
				assert.Contains(t, w.Body.String(), "too large", "%s %d", method, length)
			}
		}
	}
}

// A teardown call for what is not known must not fail: the engine would keep
// the object for ever, or forget it and hide that.
func TestTeardownOfTheUnknown(t *testing.T) {
	r := newRig(t)
	r.ok("CreateNetwork", networkOf(1, false, nil))
	for _, n := range []int{1, 2} {
		for _, method := range []string{"RevokeExternalConnectivity", "Leave", "DeleteEndpoint"} {
			require.Equal(t, object{}, r.ok(method, endpointOf(n, 9)))
		}
	}
	r.ok("DeleteNetwork", object{"NetworkID": id(2)})
	r.ok("DeleteNetwork", object{"NetworkID": "?"})
	for _, method := range []string{"EndpointOperInfo", "ProgramExternalConnectivity"} {
		assert.Contains(t, r.refused(method, endpointOf(1, 9)), "endpoint d00000090000: it is not known to Portolan")
	}
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.nothingLeft()
}

// A local-scope driver has nothing to say to these.
func TestGlobalScopeMethods(t *testing.T) {
	r := newRig(t)
	require.Equal(t, object{}, r.ok("AllocateNetwork", object{"NetworkID": id(1), "Options": object{}}))
	require.Equal(t, object{}, r.ok("FreeNetwork", object{"NetworkID": id(1)}))
	require.Equal(t, object{}, r.ok("DiscoverNew", object{"DiscoveryType": 1, "DiscoveryData": object{"Address": "192.0.2.1"}}))
	require.Equal(t, object{}, r.ok("DiscoverDelete", object{"DiscoveryType": 1}))
}

func TestPanicIsAnAnswer(t *testing.T) {
	r := newRig(t)
	r.Driver.pub = nil
	r.Driver.mapper = nil
	status, answer := r.post("/NetworkDriver.CreateNetwork", networkOf(1, false, nil))
	assert.Equal(t, http.StatusOK, status)
	assert.Contains(t, answer["Err"], "internal error")
	status, _ = r.post("/Portolan.Version", "")
	assert.Equal(t, http.StatusOK, status, "the daemon lives")
	r.Driver.mapper, r.Driver.pub = r.mapper, r.pub
	r.ok("DeleteNetwork", object{"NetworkID": id(1)})
	r.nothingLeft()
}

// Calls wait for Restore, but for those that an engine needs to take the plugin
// for alive.
func TestCallsWaitForRestore(t *testing.T) {
	r := newRig(t)
	synctest.Test(t, func(t *testing.T) {
		d := New(Config{Store: r.store, Mapper: r.mapper, Publisher: r.pub})
		ask := func(path string) *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			d.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(`{"NetworkID":"n","EndpointID":"e"}`)))
			return w
		}
		start := time.Now()
		for _, path := range []string{"/Plugin.Activate", "/NetworkDriver.GetCapabilities", "/Portolan.Version"} {
			assert.NotContains(t, ask(path).Body.String(), "Err", path)
		}
		assert.Zero(t, time.Since(start))
		assert.Contains(t, ask("/NetworkDriver.Leave").Body.String(), "still restoring")
		assert.Equal(t, waitLimit, time.Since(start), "of the bubble's clock")

		go func() { time.Sleep(time.Second); assert.NoError(t, d.Restore()) }()
		assert.Equal(t, "{}\n", ask("/NetworkDriver.Leave").Body.String())
		assert.Equal(t, waitLimit+time.Second, time.Since(start))
	})
}

// A call that waits for another one gives up, and one that hangs is cut off.
func TestCallsAreBounded(t *testing.T) {
	r := newRig(t)
	synctest.Test(t, func(t *testing.T) {
		d := New(Config{Store: r.store, Mapper: r.mapper, Publisher: r.pub})
		require.NoError(t, d.Restore())
		ask := func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			d.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/NetworkDriver.DeleteNetwork", strings.NewReader(`{"NetworkID":"n1"}`)))
			return w
		}
		release, err := d.networks.own(context.Background(), "n1")
		require.NoError(t, err)
		w := ask()
		assert.Equal(t, http.StatusOK, w.Code)
		assert.Contains(t, w.Body.String(), "delete network n1: another call for n1 is not finished, try again")
		release()
		assert.Equal(t, "{}\n", ask().Body.String())

		mux := http.NewServeMux()
		hang := make(chan struct{})
		handleEmpty(routes{d, mux, true}, "/hang", func(context.Context, nothing) (nothing, error) {
			<-hang
			return nothing{}, nil
		})
		w = httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/hang", nil))
		assert.Equal(t, http.StatusServiceUnavailable, w.Code)
		assert.JSONEq(t, `{"Err":"gave up after 1m0s; the log of the Portolan daemon may say more"}`, w.Body.String())
		assert.Equal(t, contentType, w.Header().Get("Content-Type"))
		close(hang)
	})
}

func TestVersion(t *testing.T) {
	r := newRig(t)
	status, answer := r.post("/Portolan.Version", "")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, object{"Version": "v1", "API": 1.0, "PID": float64(os.Getpid()), "StateDir": r.dir, "Info": nil}, answer)
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/Portolan.Version", nil))
	assert.Equal(t, http.StatusOK, w.Code, "a GET does as well")
}
