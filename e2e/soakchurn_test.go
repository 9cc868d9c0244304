package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/portolan/portolan/internal/enginetest"
)

// A tenant is a container that comes and goes. Its answers have its name, so that
// nobody is taken for another.
type tenant struct {
	name    string
	network string
	publish []string // arguments of -p
	listen  []string // arguments of demo echo
	probes  []way
	chosen  bool // Portolan chose its host ports, and may give them to the next
}

// way leads to a tenant's port, and names the port in the container that it leads
// to.
type way struct {
	place
	network string
	host    int
	port    int
}

// churn runs one tenant after the other. Its host ports are its own: those of
// the other worker are others.
func (s *soak) churn(ctx context.Context, worker int) {
	kinds := []struct {
		name string
		do   func(context.Context, tenant, int) error
	}{
		{"UDP and TCP", s.plain},
		{"shifted range of 10", s.shifted},
		{"long ranges of 1,536", s.long},
		{"ephemeral ports", s.ephemeral},
		{"host addresses", s.addresses},
		{"network created and removed", s.ownNetwork},
		{"container restarted", s.restarted},
		{"gateway moved", s.moved},
	}
	for i := worker * len(kinds) / 2; ctx.Err() == nil; i++ {
		kind := kinds[i%len(kinds)]
		base := 10000 + 8000*worker + rand.IntN(6000)
		t := tenant{name: fmt.Sprintf("t%d-%d", worker, i), network: "n1"}
		if err := kind.do(ctx, t, base); err != nil {
			s.failed("%s, tenant %s: %v", kind.name, t.name, err)
			return
		}
		s.count(kind.name)
	}
}

// everywhere are probes of one host port by every way.
func (s *soak) everywhere(network string, host, port int) (ps []way) {
	for _, p := range s.places() {
		ps = append(ps, way{p, network, host, port})
	}
	return ps
}

// withUDPAndTCP has a tenant publish port 7000 on a host port.
func (s *soak) withUDPAndTCP(t tenant, base int) tenant {
	t.publish = []string{fmt.Sprintf("%d:7000/udp", base), fmt.Sprintf("%d:7000", base)}
	t.listen = []string{"-udp", "7000", "-tcp", "7000"}
	t.probes = append(s.everywhere("udp", base, 7000), s.everywhere("tcp", base, 7000)...)
	return t
}

func (s *soak) plain(ctx context.Context, t tenant, base int) error {
	return s.live(ctx, s.withUDPAndTCP(t, base), nil)
}

func (s *soak) shifted(ctx context.Context, t tenant, base int) error {
	t.publish = []string{fmt.Sprintf("%d-%d:20000-20009/udp", base, base+9)}
	t.listen = []string{"-udp", "20000-20009"}
	for _, i := range []int{0, 4, 9} {
		t.probes = append(t.probes, s.everywhere("udp", base+i, 20000+i)...)
	}
	return s.live(ctx, t, nil)
}

func (s *soak) long(ctx context.Context, t tenant, base int) error {
	last := base + 1535
	same := fmt.Sprintf("%d-%d:%[1]d-%[2]d", base, last)
	t.publish = []string{same, same + "/udp"}
	ends := fmt.Sprintf("%d,%d", base, last)
	t.listen = []string{"-udp", ends, "-tcp", ends}
	for _, port := range []int{base, last} {
		t.probes = append(t.probes, s.everywhere("udp", port, port)...)
		t.probes = append(t.probes, s.everywhere("tcp", port, port)...)
	}
	return s.live(ctx, t, nil)
}

// ephemeral lets Portolan choose; which ports it has taken says portolan inspect.
func (s *soak) ephemeral(ctx context.Context, t tenant, _ int) error {
	t.publish, t.chosen = []string{"7000/udp", "7000"}, true
	t.listen = []string{"-udp", "7000", "-tcp", "7000"}
	return s.live(ctx, t, func(t *tenant) error {
		for _, network := range []string{"udp", "tcp"} {
			host, err := s.hostPort(t.name, "7000/"+network)
			if err != nil {
				return err
			}
			t.probes = append(t.probes, s.everywhere(network, host, 7000)...)
		}
		return nil
	})
}

func (s *soak) addresses(ctx context.Context, t tenant, base int) error {
	t.publish = []string{
		fmt.Sprintf("%s:%d:7000/udp", enginetest.HostIPv4, base), fmt.Sprintf("127.0.0.1:%d:7001/udp", base),
		fmt.Sprintf("[::1]:%d:7002", base),
	}
	t.listen = []string{"-udp", "7000,7001", "-tcp", "7002"}
	places := s.places()
	t.probes = []way{{places[0], "udp", base, 7000}, {places[2], "udp", base, 7001}, {places[4], "tcp", base, 7002}, {places[5], "tcp", base, 7002}}
	return s.live(ctx, t, nil)
}

func (s *soak) ownNetwork(ctx context.Context, t tenant, base int) error {
	t.network = "n-" + t.name
	if err := s.docker1("network", "create", "-d", driver, "--subnet", fmt.Sprintf("172.%d.0.0/24", 32+base/8000), "--ipv6",
		"--subnet", fmt.Sprintf("fd00:%d::/64", 32+base/8000), t.network); err != nil {
		return err
	}
	err := s.live(ctx, s.withUDPAndTCP(t, base), nil)
	return errors.Join(err, s.docker1("network", "rm", t.network))
}

func (s *soak) restarted(ctx context.Context, t tenant, base int) error {
	return s.live(ctx, s.withUDPAndTCP(t, base), func(t *tenant) error {
		if err := s.reached(*t); err != nil {
			return err
		}
		return s.docker1("restart", "-t", "5", t.name)
	})
}

// moved takes the container's gateway away from under it.
func (s *soak) moved(ctx context.Context, t tenant, base int) error {
	t = s.withUDPAndTCP(t, base)
	return s.live(ctx, t, func(t *tenant) error {
		if err := s.docker1("network", "connect", "n2", t.name); err != nil {
			return err
		}
		if err := s.docker1("network", "disconnect", "n1", t.name); err != nil {
			return err
		}
		// The other network has no IPv6: those clients of other hosts are refused.
		t.probes = t.probes[:0]
		for _, p := range s.places() {
			if p.name != "neighbour, IPv6" {
				t.probes = append(t.probes, way{p, "udp", base, 7000}, way{p, "tcp", base, 7000})
			}
		}
		return nil
	})
}

// live is a tenant's life: it is started, then does what next says, answers by
// every way, stays a while, and when it has gone nobody answers.
func (s *soak) live(ctx context.Context, t tenant, next func(*tenant) error) error {
	args := []string{"run", "-d", "--name", t.name, "--network", t.network}
	for _, p := range t.publish {
		args = append(args, "-p", p)
	}
	args = append(append(args, image, "echo", "-name", t.name), t.listen...)
	if err := s.docker1(args...); err != nil {
		return err
	}
	if next != nil {
		if err := next(&t); err != nil {
			return err
		}
	}
	if err := s.reached(t); err != nil {
		return err
	}
	s.pause(ctx, time.Duration(rand.IntN(1000))*time.Millisecond)
	if err := s.docker1("rm", "-f", t.name); err != nil {
		return err
	}
	for _, p := range t.probes {
		text, err := p.send(p.network, p.host, "late", 100*time.Millisecond)
		if err != nil {
			continue
		}
		if e, err := parseEchoed(text); err != nil || !t.chosen || e.name == t.name {
			return fmt.Errorf("%s, %s port %d: %q came after the end", p.name, p.network, p.host, text)
		}
	}
	return nil
}

// reached waits until the tenant answers by every way. An answer of anybody else
// is an error at once.
func (s *soak) reached(t tenant) error {
	for _, p := range t.probes {
		err := enginetest.Poll(patience, func() error { return p.ask(t.name) })
		if err != nil {
			return fmt.Errorf("%s, %s port %d: %w", p.name, p.network, p.host, err)
		}
	}
	return nil
}

// ask sends a message to a tenant.
func (p way) ask(name string) error {
	payload := strconv.Itoa(rand.Int())
	text, err := p.send(p.network, p.host, payload, time.Second)
	if err != nil {
		return err
	}
	got, err := parseEchoed(text)
	if err == nil && (got.port != strconv.Itoa(p.port) || got.payload != payload || got.name != name) {
		err = wrongAnswer{text}
	}
	return err
}

// docker1 runs the docker client. What fails because the daemon was away in the
// middle of it is tried again; what was half done is removed before.
func (s *soak) docker1(args ...string) error {
	if args[0] == "network" && args[1] == "create" {
		defer s.creates.begin()()
	}
	before := s.away.now()
	_, err := s.docker(args...)
	for range 5 {
		if err == nil || !s.away.since(before) {
			return err
		}
		s.count("docker command tried again, as the daemon was away")
		if wait := s.healthy(patience); wait != nil {
			return errors.Join(err, wait)
		}
		before = s.away.now()
		if args[0] == "run" {
			_, _ = s.docker("rm", "-f", args[3])
		}
		_, err = s.docker(args...)
		if err != nil && (strings.Contains(err.Error(), "No such") || strings.Contains(err.Error(), "already exists") || strings.Contains(err.Error(), "is not connected")) {
			return nil // the first time has done it
		}
	}
	return err
}

// hostPort is the host port of a container's, as 80/tcp. A daemon that is away is
// waited for.
func (s *soak) hostPort(name, port string) (int, error) {
	before := s.away.now()
	out, err := enginetest.Run(s.command("mounted", "portolan", "inspect", name))
	for err != nil && s.away.since(before) {
		if wait := s.healthy(patience); wait != nil {
			return 0, errors.Join(err, wait)
		}
		before = s.away.now()
		out, err = enginetest.Run(s.command("mounted", "portolan", "inspect", name))
	}
	if err != nil {
		return 0, err
	}
	var found []struct {
		NetworkSettings struct {
			Ports map[string][]struct{ HostIP, HostPort string }
		}
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		return 0, err
	}
	if len(found) != 1 || len(found[0].NetworkSettings.Ports[port]) == 0 {
		return 0, fmt.Errorf("portolan inspect %s does not tell port %s: %s", name, port, out)
	}
	return strconv.Atoi(found[0].NetworkSettings.Ports[port][0].HostPort)
}
