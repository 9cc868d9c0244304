package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/portolan/portolan/internal/enginetest"
)

const (
	establishedEndpoints = 500
	establishedPorts     = 32 // of each, half of them TCP
	establishedRounds    = 25
	tmpfs                = "/dev/shm"
)

// resident is a daemon without an engine, which has published something before.
type resident struct {
	name, where     string
	endpoints       int
	daemon          *daemon
	way             *way
	nextPort        int
	publish, revoke map[string][]time.Duration // by protocol
}

// establishedFigures are the daemons, by the places below.
type establishedFigures struct {
	plain
	residents []*resident
}

const (
	emptyInMemory = iota
	fullInMemory
	emptyOnDisk
	fullOnDisk
)

// protocols are those of one more endpoint, with their numbers.
var protocols = []struct {
	name   string
	number int
}{{"tcp", 6}, {"udp", 17}}

// measureEstablished speaks the engine's part to four daemons in namespaces of
// their own, of which two have 500 endpoints.
func measureEstablished(ctx context.Context, s *session, c config) (figures, error) {
	f := &establishedFigures{residents: []*resident{
		emptyInMemory: {name: "empty", where: tmpfs},
		fullInMemory:  {name: "500 endpoints, 16,000 mappings", where: tmpfs, endpoints: establishedEndpoints},
		emptyOnDisk:   {name: "empty", where: c.bin},
		fullOnDisk:    {name: "500 endpoints, 16,000 mappings", where: c.bin, endpoints: establishedEndpoints},
	}}
	for i, r := range f.residents {
		if err := r.start(s, c, i); err != nil {
			return nil, err
		}
		for n := range r.endpoints {
			if err := r.join(ctx, n); err != nil {
				return nil, err
			}
			if _, err := r.program(ctx, n, establishedPorts/2, 6, 17); err != nil {
				return nil, err
			}
		}
		s.Logf("established: %s, state in %s", r.name, r.where)
	}
	for round := range establishedRounds + 1 {
		for _, i := range rand.Perm(len(f.residents)) {
			if err := f.residents[i].round(ctx, round > 0); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

// start starts the daemon and makes a network.
func (r *resident) start(s *session, c config, number int) error {
	r.publish, r.revoke = map[string][]time.Duration{}, map[string][]time.Duration{}
	r.nextPort = firstPort
	in := enginetest.Namespace{Name: fmt.Sprintf("bench-%d-%d", os.Getpid(), number)}
	if _, err := enginetest.Run(exec.Command("ip", "netns", "add", in.Name)); err != nil {
		return err
	}
	s.Cleanup(func() {
		if _, err := enginetest.Run(exec.Command("ip", "netns", "del", in.Name)); err != nil {
			s.Errorf("%v", err)
		}
	})
	if _, err := enginetest.Run(in.Command("ip", "link", "set", "lo", "up")); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(r.where, "bench-state-")
	if err != nil {
		return err
	}
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	if r.daemon, err = c.startDaemon(s, in, "nftables", dir, dir); err != nil {
		return err
	}
	r.way = newWay(r.daemon.socket)
	_, err = r.call(context.Background(), "CreateNetwork", object{"NetworkID": objectID("a", 1),
		"Options":  object{"com.docker.network.enable_ipv4": true, "com.docker.network.generic": object{}},
		"IPv4Data": []object{{"AddressSpace": "LocalDefault", "Pool": "10.32.0.0/16", "Gateway": "10.32.0.1/16"}},
		"IPv6Data": []object{}})
	return err
}

// object is one of JSON.
type object map[string]any

// objectID has as many digits as an engine's, of which the first tell it apart,
// as there.
func objectID(kind string, n int) string { return fmt.Sprintf("%s%09d%054d", kind, n, 0) }

func (r *resident) endpoint(n int) object {
	return object{"NetworkID": objectID("a", 1), "EndpointID": objectID("e", n)}
}

// join makes an endpoint and joins it to a sandbox of its own.
func (r *resident) join(ctx context.Context, n int) error {
	create, join := r.endpoint(n), r.endpoint(n)
	create["Interface"] = object{"Address": fmt.Sprintf("10.32.%d.%d/16", 1+n/200, 1+n%200)}
	join["SandboxKey"] = "/var/run/docker/netns/bench" + strconv.Itoa(n)
	if _, err := r.call(ctx, "CreateEndpoint", create); err != nil {
		return err
	}
	_, err := r.call(ctx, "Join", join)
	return err
}

// program publishes so many ports of each protocol that are no range: every
// other number, and another one in the container.
func (r *resident) program(ctx context.Context, n, ports int, protocols ...int) (took time.Duration, err error) {
	var bindings, exposed []object
	for i := range ports {
		for _, proto := range protocols {
			host := r.nextPort + 2*i
			bindings = append(bindings, object{"Proto": proto, "IP": "", "Port": 100 + i, "HostIP": "", "HostPort": host, "HostPortEnd": host})
			exposed = append(exposed, object{"Proto": proto, "Port": 100 + i})
		}
	}
	r.nextPort += 2 * ports
	req := r.endpoint(n)
	req["Options"] = object{"com.docker.network.portmap": bindings, "com.docker.network.endpoint.exposedports": exposed}
	return r.call(ctx, "ProgramExternalConnectivity", req)
}

// round publishes one more endpoint of each protocol and takes it away.
func (r *resident) round(ctx context.Context, counts bool) error {
	for _, proto := range protocols {
		n, port := r.endpoints, r.nextPort
		if err := r.join(ctx, n); err != nil {
			return err
		}
		publish, err := r.program(ctx, n, establishedPorts, proto.number)
		if err != nil {
			return err
		}
		revoke, err := r.call(ctx, "RevokeExternalConnectivity", r.endpoint(n))
		if err != nil {
			return err
		}
		for _, method := range []string{"Leave", "DeleteEndpoint"} {
			if _, err := r.call(ctx, method, r.endpoint(n)); err != nil {
				return err
			}
		}
		r.nextPort = port
		if counts {
			r.publish[proto.name] = append(r.publish[proto.name], publish)
			r.revoke[proto.name] = append(r.revoke[proto.name], revoke)
		}
	}
	return nil
}

// call is one call of the remote driver protocol, by the driver's socket.
func (r *resident) call(ctx context.Context, method string, req object) (took time.Duration, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return 0, err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/NetworkDriver."+method, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	began := time.Now()
	resp, err := r.way.client.Do(post)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", method, err)
	}
	defer resp.Body.Close()
	var answer struct{ Err string }
	err = json.NewDecoder(resp.Body).Decode(&answer)
	took = time.Since(began)
	switch {
	case err != nil:
		return took, fmt.Errorf("%s: %s: %w", method, resp.Status, err)
	case answer.Err != "" || resp.StatusCode != http.StatusOK:
		return took, fmt.Errorf("%s: %s: %s", method, resp.Status, answer.Err)
	}
	return took, nil
}

func (f *establishedFigures) tables() string {
	t := table{head: []string{"daemon", "state", "publish 32 TCP ports", "quartiles", "revoke", "publish 32 UDP ports", "quartiles", "revoke", "runs"}}
	for i, r := range f.residents {
		state := "in memory, no fsync"
		if i >= emptyOnDisk {
			state = "on disk, fsync"
		}
		cells := []string{r.name, state}
		for _, p := range protocols {
			low, high := spread(r.publish[p.name])
			cells = append(cells, millis(median(r.publish[p.name])), millis(low)+" – "+millis(high), millis(median(r.revoke[p.name])))
		}
		t.add(append(cells, strconv.Itoa(len(r.publish["tcp"])))...)
	}
	return section("One more endpoint, by the driver's socket, medians", t)
}

func (f *establishedFigures) goals() (goals []goal) {
	for _, p := range protocols {
		full, empty := median(f.residents[fullInMemory].publish[p.name]), median(f.residents[emptyInMemory].publish[p.name])
		goals = append(goals,
			goal{fmt.Sprintf("500 endpoints: publishing 32 %s ports more at most 5 ms, without fsync", p.name), millis(full), full <= 5*time.Millisecond},
			goal{"and at most 1 ms more than on an empty daemon", millis(full - empty), full-empty <= time.Millisecond})
	}
	return goals
}
