package main

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// fakeDaemon answers with fixed endpoints and remembers what it was told.
type fakeDaemon struct {
	socket    string
	endpoints []driver.EndpointInfo
	status    driver.StatusResponse

	mu     sync.Mutex // guards below
	owners []driver.SetOwnerRequest
	cleans int
}

func newFakeDaemon(t *testing.T, endpoints ...driver.EndpointInfo) *fakeDaemon {
	t.Helper()
	d := &fakeDaemon{socket: filepath.Join(shortDir(t), "portolan.sock"), endpoints: endpoints}
	mux := http.NewServeMux()
	answer := func(path string, f func(*http.Request) any) {
		mux.HandleFunc("POST /Portolan."+path, func(w http.ResponseWriter, r *http.Request) {
			_ = json.NewEncoder(w).Encode(f(r))
		})
	}
	answer("Version", func(*http.Request) any {
		return driver.VersionResponse{
			Version: "v1.2.3", API: driver.APIVersion,
			Info: map[string]string{"mapper": "nftables", "reason": "the kernel has it"},
		}
	})
	answer("List", func(*http.Request) any { return driver.ListResponse{Endpoints: d.endpoints} })
	answer("Status", func(*http.Request) any { return d.status })
	answer("SetOwner", func(r *http.Request) any {
		d.mu.Lock()
		defer d.mu.Unlock()
		var o driver.SetOwnerRequest
		if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
			return map[string]string{"Err": err.Error()}
		}
		d.owners = append(d.owners, o)
		return struct{}{}
	})
	answer("Cleanup", func(*http.Request) any {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.cleans++
		return struct{}{}
	})
	serveUnix(t, d.socket, mux)
	t.Setenv("PORTOLAN_SOCKET", d.socket)
	return d
}

func mapping(proto portmap.Proto, hostIP string, first, last, port uint16) portmap.Mapping {
	m := portmap.Mapping{Proto: proto, HostPort: first, HostPortEnd: last, Port: port, Origin: portmap.OriginEngine}
	if hostIP != "" {
		m.HostIP = netip.MustParseAddr(hostIP)
	}
	return m
}

// testEndpoints are a web server whose container nobody has told of, and a DNS
// server whose container is known.
func testEndpoints() []driver.EndpointInfo {
	return []driver.EndpointInfo{
		{
			ID: webEndpoint, Network: testNetwork, Sandbox: "/var/run/docker/netns/1", IPv4: netip.MustParseAddr("172.20.0.2"),
			Mappings: []portmap.Mapping{
				mapping(portmap.TCP, "", 8443, 8443, 443),
				mapping(portmap.TCP, "127.0.0.1", 8080, 8080, 80),
				mapping(portmap.TCP, "", 8080, 8080, 80),
			},
			Target: portmap.Target{Endpoint: webEndpoint, Network: testNetwork, IPv4: netip.MustParseAddr("172.20.0.2")},
		},
		{
			ID: dnsEndpoint, Network: testNetwork, Sandbox: "/var/run/docker/netns/2", IPv4: netip.MustParseAddr("172.20.0.3"),
			Owner: &store.Owner{ContainerID: "d0d0caca00000000", ContainerName: "dns"},
			Mappings: []portmap.Mapping{
				mapping(portmap.SCTP, "", 5000, 5000, 5000),
				mapping(portmap.UDP, "", 53530, 53530, 53),
				mapping(portmap.UDP, "2001:db8::1", 10000, 10999, 20000),
				mapping(portmap.TCP, "", 53530, 53530, 53),
			},
			Target: portmap.Target{Endpoint: dnsEndpoint, Network: testNetwork, IPv4: netip.MustParseAddr("172.20.0.3")},
		},
	}
}

// noEngine makes every look-up at the engine fail.
func noEngine(t *testing.T) {
	t.Helper()
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(shortDir(t), "none.sock"))
}

func TestNoDaemonSaysWhatWasTried(t *testing.T) {
	socket := filepath.Join(shortDir(t), "none.sock")
	_, stderr, status := portolan(t, "ls", "--socket", socket)
	assert.Equal(t, 1, status)
	assert.Equal(t, "portolan ls: no portolan daemon answers; tried "+socket+" (connect: no such file or directory)\n", stderr)
}

// Private engines have their managed plugins' sockets where this host's are.
func TestADaemonOfAnotherNamespaceIsNotOurs(t *testing.T) {
	d := newFakeDaemon(t)
	assert.False(t, isElsewhere(d.socket))
	assert.False(t, isElsewhere(d.socket+".none"))
	require.NoError(t, netnstest.NewHost(t).Do(func() error {
		assert.True(t, isElsewhere(d.socket))
		return nil
	}))
}

func TestTheDaemonsErrorIsShownAsItIs(t *testing.T) {
	socket := filepath.Join(shortDir(t), "portolan.sock")
	serveUnix(t, socket, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/Portolan.Version" {
			_, _ = w.Write([]byte(`{"Err":"the daemon is still restoring its state"}`))
			return
		}
		_, _ = w.Write([]byte(`{"Version":"v1"}`))
	}))
	_, stderr, status := portolan(t, "inspect", "--socket", socket, "web")
	assert.Equal(t, 1, status)
	assert.Equal(t, "portolan inspect: the daemon is still restoring its state\n", stderr)
}

func TestVersion(t *testing.T) {
	t.Run("without a daemon", func(t *testing.T) {
		stdout, stderr, status := portolan(t, "version", "--socket", "/nonexistent.sock")
		assert.Equal(t, 0, status)
		assert.Empty(t, stderr)
		assert.Regexp(t, `^command  dev \(go1\.\S+ linux/\w+\)\ndaemon   no portolan daemon answers; tried /nonexistent\.sock \(.*\)\n$`, stdout)
	})
	t.Run("with a daemon of another version", func(t *testing.T) {
		d := newFakeDaemon(t)
		stdout, _, status := portolan(t, "version")
		require.Equal(t, 0, status)
		assert.Contains(t, stdout, "daemon   v1.2.3 at "+d.socket+"\nmapper   nftables: the kernel has it\n")
		assert.Contains(t, stdout, "The command is dev and the daemon v1.2.3: install the same version of both.\n")
	})
	t.Run("with a daemon of the same version", func(t *testing.T) {
		old := version
		version = "v1.2.3"
		defer func() { version = old }()
		newFakeDaemon(t)
		stdout, _, status := portolan(t, "version")
		require.Equal(t, 0, status)
		assert.NotContains(t, stdout, "install the same version")
	})
}
