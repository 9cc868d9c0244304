package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/portolan/portolan/internal/netnstest"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// rig is a Driver with everything around it: a store on disk, a Mapper and a
// Publisher in memory, and the test's own network namespace.
type rig struct {
	*Driver
	t      testing.TB
	dir    string
	mapper *portmaptest.Fake
	pub    *fakePublisher
	h      http.Handler
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir()}
	r.open()
	t.Cleanup(func() {
		_ = Cleanup(nil, "", r.store.Sysctls())
		_ = r.store.Close()
	})
	require.NoError(t, r.Restore())
	return r
}

// open starts a daemon on what the one before left.
func (r *rig) open() {
	r.t.Helper()
	s, err := store.Open(r.dir, nil)
	require.NoError(r.t, err)
	r.mapper = portmaptest.NewFake()
	r.pub = newFakePublisher(r.mapper)
	r.Driver = New(Config{Store: s, Mapper: r.mapper, Publisher: r.pub, IPForward: true, Version: "v1"})
	r.h = r.Handler()
}

// restart kills the daemon and starts another one.
func (r *rig) restart() {
	r.t.Helper()
	require.NoError(r.t, r.store.Close())
	r.open()
	require.NoError(r.t, r.Restore())
}

// post calls a path and returns status and answer.
func (r *rig) post(path string, body any) (int, map[string]any) {
	r.t.Helper()
	text, ok := body.(string)
	if !ok {
		b, err := json.Marshal(body)
		require.NoError(r.t, err)
		text = string(b)
	}
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(text)))
	require.Equal(r.t, contentType, w.Header().Get("Content-Type"))
	answer := map[string]any{}
	require.NoError(r.t, json.Unmarshal(w.Body.Bytes(), &answer), "answer %q", w.Body)
	return w.Code, answer
}

// ok calls a driver method that must succeed.
func (r *rig) ok(method string, body any) map[string]any {
	r.t.Helper()
	status, answer := r.post("/NetworkDriver."+method, body)
	require.Equal(r.t, http.StatusOK, status, "%s: %v", method, answer)
	require.NotContains(r.t, answer, "Err", method)
	return answer
}

// refused calls a driver method that must fail, and returns the one line that
// a person would see.
func (r *rig) refused(method string, body any) string {
	r.t.Helper()
	status, answer := r.post("/NetworkDriver."+method, body)
	require.Equal(r.t, http.StatusOK, status, "%s: %v", method, answer)
	text, _ := answer["Err"].(string)
	require.NotEmpty(r.t, text, "%s succeeded: %v", method, answer)
	require.NotContains(r.t, text, "\n")
	return text
}

// id is a made-up network or endpoint ID.
func id(n int) string { return fmt.Sprintf("%08x", 0xd0000000+n) + strings.Repeat("0", 56) }

type object = map[string]any

// createNetwork asks for network n with the subnets 10.n.0.0/24 and, if it is
// told so, fd00:n::/64.
func networkOf(n int, ipv6 bool, options object) object {
	v4 := []object{{"AddressSpace": "LocalDefault", "Pool": fmt.Sprintf("10.%d.0.0/24", n), "Gateway": fmt.Sprintf("10.%d.0.1/24", n)}}
	v6 := []object{}
	if ipv6 {
		v6 = append(v6, object{"Pool": fmt.Sprintf("fd00:%d::/64", n), "Gateway": fmt.Sprintf("fd00:%d::1/64", n)})
	}
	all := object{keyEnableIPv4: true, keyEnableIPv6: ipv6, keyGeneric: object{}}
	for k, v := range options {
		if k == keyInternal {
			all[k] = v
		} else {
			all[keyGeneric].(object)[k] = v
		}
	}
	return object{"NetworkID": id(n), "Options": all, "IPv4Data": v4, "IPv6Data": v6}
}

func bridgeOf(n int) string { return "pl-" + id(n)[:12] }

// run does what docker run does: endpoint e of network n, address number host.
// The container's end of the veth pair stays where it is.
func (r *rig) run(n, e, host int, ipv6 bool, sandbox string) {
	r.t.Helper()
	address := object{"Address": fmt.Sprintf("10.%d.0.%d/24", n, host)}
	if ipv6 {
		address["AddressIPv6"] = fmt.Sprintf("fd00:%d::%x/64", n, host)
	}
	r.ok("CreateEndpoint", object{"NetworkID": id(n), "EndpointID": id(e), "Interface": address})
	r.ok("Join", object{"NetworkID": id(n), "EndpointID": id(e), "SandboxKey": sandbox})
}

func endpointOf(n, e int) object { return object{"NetworkID": id(n), "EndpointID": id(e)} }

// programOf asks to publish udp ports as in -p.
func programOf(n, e int, bindings ...object) object {
	return object{"NetworkID": id(n), "EndpointID": id(e), "Options": object{
		keyPortMap: bindings, keyExposed: []object{{"Proto": 17, "Port": 53}},
	}}
}

func udp(hostIP string, hostPort, port int) object {
	return object{"Proto": 17, "IP": "", "Port": port, "HostIP": hostIP, "HostPort": hostPort, "HostPortEnd": hostPort}
}

func linkOf(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	require.NoError(t, err, name)
	return l
}

// nothingLeft asserts that no interface and no record of ours is there.
func (r *rig) nothingLeft() {
	r.t.Helper()
	links, err := ourLinks()
	require.NoError(r.t, err)
	require.Empty(r.t, links)
	require.Empty(r.t, r.store.Networks())
	require.Empty(r.t, r.store.Endpoints())
	require.Empty(r.t, r.store.Sysctls())
	require.Empty(r.t, r.mapper.Networks())
	require.Empty(r.t, r.mapper.Publications())
	require.Empty(r.t, r.pub.heldBy)
	require.Empty(r.t, r.networks.m)
	require.Empty(r.t, r.endpoints.m)
	require.Empty(r.t, r.sandboxes.m)
}

// fakePublisher reserves in memory and maps into a Mapper. A sandbox that asks
// again for any port gets the one that it had.
type fakePublisher struct {
	mapper portmap.Mapper

	mu     sync.Mutex // guards below
	fail   error
	next   uint16
	log    []string
	of     map[string]string            // endpoint to sandbox
	heldBy map[string][]portmap.Mapping // by sandbox
	gone   []portmap.Mapping            // at the last Restore
}

var (
	_ Publisher = (*fakePublisher)(nil)
	_ Publisher = (*portmap.Publisher)(nil)
)

func newFakePublisher(m portmap.Mapper) *fakePublisher {
	return &fakePublisher{mapper: m, next: 40000, of: map[string]string{}, heldBy: map[string][]portmap.Mapping{}}
}

func (p *fakePublisher) Publish(sandbox string, t portmap.Target, bs []portmap.PortBinding, record portmap.Record) ([]portmap.Mapping, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, fmt.Sprintf("publish %.8s", t.Endpoint))
	var ms []portmap.Mapping
	for _, b := range bs {
		ms = append(ms, p.mapping(sandbox, b))
	}
	undo, err := record(ms)
	if err != nil {
		return nil, err
	}
	if p.fail != nil {
		return nil, errors.Join(p.fail, undo())
	}
	p.heldBy[sandbox] = ms
	for ep, sb := range p.of {
		if sb == sandbox && ep != t.Endpoint {
			if err := p.mapper.Unmap(ep); err != nil {
				return nil, err
			}
			delete(p.of, ep)
		}
	}
	p.of[t.Endpoint] = sandbox
	return ms, p.mapper.Map(portmap.Publication{Target: t, Mappings: ms})
}

func (p *fakePublisher) mapping(sandbox string, b portmap.PortBinding) portmap.Mapping {
	m := portmap.Mapping{Proto: b.Proto, HostIP: b.HostIP, HostPort: b.HostPort, HostPortEnd: b.HostPort, Port: b.Port, Origin: portmap.OriginEngine}
	if b.PortEnd > b.Port {
		m.HostPortEnd = b.HostPortEnd
	}
	if b.HostPort != 0 {
		return m
	}
	i := slices.IndexFunc(p.heldBy[sandbox], func(h portmap.Mapping) bool { return h.Proto == b.Proto && h.Port == b.Port })
	if i >= 0 {
		return p.heldBy[sandbox][i]
	}
	m.HostPort, m.HostPortEnd = p.next, p.next
	p.next++
	return m
}

func (p *fakePublisher) Unpublish(endpoint string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, fmt.Sprintf("unpublish %.8s", endpoint))
	delete(p.of, endpoint)
	return p.mapper.Unmap(endpoint)
}

func (p *fakePublisher) Release(sandbox string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, "release "+sandbox)
	for _, sb := range p.of {
		if sb == sandbox {
			return errors.New("released while published")
		}
	}
	delete(p.heldBy, sandbox)
	return nil
}

func (p *fakePublisher) Restore(nets []portmap.Network, runs []portmap.Run, gone []portmap.Mapping) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = gone
	var pubs []portmap.Publication
	for _, run := range runs {
		if len(run.Mappings) == 0 {
			p.heldBy[run.Sandbox] = run.Parked
			continue
		}
		p.of[run.Endpoint] = run.Sandbox
		p.heldBy[run.Sandbox] = run.Mappings
		pubs = append(pubs, run.Publication)
	}
	return p.mapper.Load(nets, pubs)
}

// took returns the calls since the last time it was asked.
func (p *fakePublisher) took() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	log := p.log
	p.log = nil
	return log
}
