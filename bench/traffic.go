package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/portolan/portolan/bench/load"
	"github.com/portolan/portolan/internal/enginetest"
)

const (
	trafficRounds = 5
	trafficTime   = 800 * time.Millisecond // of one load
	loadImage     = "portolan-load"
)

// loads are what every path carries.
var loads = []struct {
	name string
	spec load.Spec
}{
	{"UDP, 32 clients", load.Spec{Kind: load.UDP, Clients: 32}},
	{"UDP, 16 × 16", load.Spec{Kind: load.UDP, Clients: 16, Window: 16}},
	{"UDP, 256 × 4", load.Spec{Kind: load.UDP, Clients: 256, Window: 4}},
	{"UDP, unconnected", load.Spec{Kind: load.UDP, Clients: 32, Unconnected: true}},
	{"TCP, 32 clients", load.Spec{Kind: load.TCP, Clients: 32}},
	{"TCP connections", load.Spec{Kind: load.Connect, Clients: 32}},
	{"TCP bulk", load.Spec{Kind: load.Bulk}},
}

// path is one way from the host to a server in a container.
type path struct {
	name        string
	engine      *enginetest.Engine
	to          netip.AddrPort // of UDP and TCP; the sink's port is the one after
	noUDP       bool
	unconnected bool // carries unconnected UDP, too, which is not asked of all
	direct      int  // its direct path's place, its own for a direct one
	pids        []int
	failed      string // why it carries no more
	rates       [][]float64
	lost        []int64
	costs       [][]cost // for each answer; bulk: for each gigabit
}

func newPath(p path) *path {
	p.rates, p.lost, p.costs = make([][]float64, len(loads)), make([]int64, len(loads)), make([][]cost, len(loads))
	return &p
}

func (p *path) carries(s load.Spec) bool {
	return p.failed == "" && (s.Kind != load.UDP || !p.noUDP && (p.unconnected || !s.Unconnected))
}

// spec is a load on this path.
func (p *path) spec(s load.Spec, d time.Duration) load.Spec {
	s.To, s.For = p.to, d
	if s.Kind == load.Bulk {
		s.To = netip.AddrPortFrom(p.to.Addr(), p.to.Port()+1)
	}
	return s
}

// trafficFigures are what the paths from the host to a container carry.
type trafficFigures struct {
	paths []*path
	major int    // of the engine, whose proxy the goals are about
	hooks string // what the daemon says of them
}

// measureTraffic measures all paths, which take turns. One that fails is out,
// but for the direct ones.
func measureTraffic(ctx context.Context, s *session, c config) (figures, error) {
	if err := link(c.bin); err != nil {
		return nil, err
	}
	l, err := newLab(ctx, s, c, nftables, builtin, noProxy)
	if err != nil {
		return nil, err
	}
	f := &trafficFigures{major: majorOf(programVersion("dockerd", "--version"))}
	if f.paths, err = l.paths(s); err != nil {
		return nil, err
	}
	f.hooks = hooksOf(l.subjects[nftables].daemon)
	for round := range trafficRounds {
		for i, what := range loads {
			for _, place := range rand.Perm(len(f.paths)) {
				p := f.paths[place]
				if !p.carries(what.spec) {
					continue
				}
				if err := l.carry(p, i); err != nil {
					if place == p.direct || ctx.Err() != nil {
						return nil, fmt.Errorf("%s over %s: %w", what.name, p.name, err)
					}
					l.log("traffic: %s over %s: %v", what.name, p.name, err)
					p.failed = reason(err)
				}
			}
		}
		l.log("traffic: round %d of %d", round+1, trafficRounds)
	}
	return f, nil
}

// carry runs one load over one path.
func (l *lab) carry(p *path, i int) error {
	spec := p.spec(loads[i].spec, trafficTime)
	if spec.Kind == load.Connect {
		if err := emptyTimeWait(p.engine); err != nil {
			return err
		}
	}
	begin, err := startCost(p.pids)
	if err != nil {
		return err
	}
	r, err := client(p.engine.Host, spec)
	if err != nil {
		return err
	}
	rate, answers := r.Rate(), float64(r.Answers)
	if spec.Kind == load.Bulk {
		rate, answers = r.Gbits(), r.Gbits()*r.Took.Seconds()
	}
	one, err := begin.since(p.pids, answers)
	if err != nil {
		return err
	}
	p.costs[i] = append(p.costs[i], one)
	p.rates[i] = append(p.rates[i], rate)
	p.lost[i] += r.Lost
	return l.ctx.Err()
}

// emptyTimeWait: who leaves ports waiting is not to hinder the next.
func emptyTimeWait(e *enginetest.Engine) error {
	_, err := enginetest.Run(e.Command("ss", "-K", "state", "time-wait"))
	return err
}

// client is this program as a client in a namespace.
func client(in enginetest.Namespace, spec load.Spec) (r load.Result, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	out, err := enginetest.Run(in.Command(self, "load", spec.MarshalArgument()))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal([]byte(out), &r)
}

// majorOf is 20 of "Docker version 20.10.24+dfsg1, build …", or 0.
func majorOf(version string) (major int) {
	_, _ = fmt.Sscanf(version, "Docker version %d.", &major)
	return major
}

// The places of the direct paths.
const (
	direct4 = iota
	direct6
	direct4by6
)

// serve starts a server in a network, with its ports published on other ones, as
// most are, from port on.
func (l *lab) serve(sub *subject, network string, port int) (v4, v6 netip.Addr, err error) {
	e := sub.engine
	if _, err := l.docker(e, "image", "inspect", loadImage); err != nil {
		self, err := os.Executable()
		if err != nil {
			return v4, v6, err
		}
		if err := e.Load(loadImage, self); err != nil {
			return v4, v6, err
		}
	}
	name := "load-" + network
	if _, err := l.docker(e, "run", "-d", "--name", name, "--network", network,
		"-p", fmt.Sprintf("%d:%d/udp", port, load.UDPPort), "-p", fmt.Sprintf("%d-%d:%d-%d", port, port+1, load.TCPPort, load.SinkPort),
		loadImage, "serve"); err != nil {
		return v4, v6, err
	}
	text, err := l.docker(e, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", name)
	if err != nil {
		return v4, v6, err
	}
	four, six, _ := strings.Cut(text, " ")
	if six = strings.TrimSpace(six); six != "" {
		if v6, err = netip.ParseAddr(six); err != nil {
			return v4, v6, err
		}
	}
	v4, err = netip.ParseAddr(four)
	return v4, v6, err
}

// paths starts servers and proxies.
func (l *lab) paths(s *session) ([]*path, error) {
	sub, built, bare := l.subjects[nftables], l.subjects[builtin], l.subjects[noProxy]
	e := sub.engine
	if _, err := l.docker(e, "network", "create", "-d", driverName, "--ipv6", "--subnet", "fd00:b::/64", "both"); err != nil {
		return nil, err
	}
	v4, v6, err := l.serve(sub, "both", 7100)
	if err != nil {
		return nil, err
	}
	if _, _, err := l.serve(sub, sub.network, 7200); err != nil { // IPv4 only
		return nil, err
	}
	if _, _, err := l.serve(built, built.network, 7300); err != nil {
		return nil, err
	}
	if _, _, err := l.serve(bare, bare.network, 7300); err != nil {
		return nil, err
	}
	at := func(host string, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(host), port)
	}
	daemon := []int{sub.daemon.process.PID()}
	proxies, err := proxiesOn(built.engine.Host.Path(), "7300", "7301")
	if err != nil {
		return nil, err
	}
	paths := []*path{
		direct4:    newPath(path{name: "straight to the container, IPv4", engine: e, to: netip.AddrPortFrom(v4, load.UDPPort), direct: direct4, unconnected: true}),
		direct6:    newPath(path{name: "straight to the container, IPv6", engine: e, to: netip.AddrPortFrom(v6, load.UDPPort), direct: direct6, unconnected: true}),
		direct4by6: newPath(path{name: "straight to the container, IPv4, by an IPv6 socket", engine: e, to: netip.AddrPortFrom(netip.AddrFrom16(v4.As16()), load.UDPPort), direct: direct4}),
		newPath(path{name: atLocalhost, engine: e, to: at("127.0.0.1", 7100), direct: direct4, unconnected: true}),
		newPath(path{name: atHostIPv4, engine: e, to: at(enginetest.HostIPv4, 7100), direct: direct4}),
		newPath(path{name: atLocalhost6, engine: e, to: at("::1", 7100), direct: direct6, pids: daemon, unconnected: true}),
		newPath(path{name: atHostIPv6, engine: e, to: at(enginetest.HostIPv6, 7100), direct: direct6, pids: daemon, unconnected: true}),
		newPath(path{name: atLocalhost64, engine: e, to: at("::1", 7200), direct: direct4, pids: daemon}),
		newPath(path{name: "built-in bridge, 127.0.0.1", engine: e, to: at("127.0.0.1", 7300), direct: direct4, pids: proxies}),
		newPath(path{name: "built-in bridge, no proxy, 127.0.0.1", engine: bare.engine, to: at("127.0.0.1", 7300), direct: direct4}),
	}
	for _, p := range peers(l.config.bin) {
		one := newPath(path{name: p.name, engine: e, to: at("127.0.0.1", uint16(p.port)), noUDP: p.noUDP, direct: direct4})
		paths = append(paths, one)
		if _, err := exec.LookPath(p.program); err != nil {
			one.failed = "not here"
			continue
		}
		pids, err := l.startPeer(s, e, p, v4)
		if err != nil {
			one.failed = reason(err)
			continue
		}
		if !p.noCPU {
			one.pids = pids
		}
	}
	for _, p := range paths {
		if err := p.answers(); err != nil {
			if p == paths[p.direct] {
				return nil, err
			}
			l.log("traffic: %v", err)
			p.failed = reason(err)
		}
	}
	return paths, nil
}

// answers waits until a path carries everything.
func (p *path) answers() error {
	for _, what := range loads {
		if !p.carries(what.spec) {
			continue
		}
		if err := carries(p.engine, p.spec(what.spec, 0)); err != nil {
			return fmt.Errorf("%s does not carry %s: %w", p.name, what.name, err)
		}
	}
	return nil
}

// carries waits until a load is answered.
func carries(e *enginetest.Engine, spec load.Spec) error {
	spec.For, spec.Clients, spec.Window = 50*time.Millisecond, 1, 1
	return enginetest.Poll(20*time.Second, func() error {
		r, err := client(e.Host, spec)
		if err == nil && r.Answers+r.Bytes == 0 {
			err = errors.New("no answer")
		}
		return err
	})
}

// runLoad is what client runs.
func runLoad(word string) error {
	var spec load.Spec
	if err := spec.UnmarshalArgument(word); err != nil {
		return err
	}
	r, err := load.Run(spec)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// link makes portolan-proxy of portolan, for peers.
func link(bin string) error {
	name := filepath.Join(bin, "portolan-proxy")
	if _, err := os.Lstat(name); err == nil {
		return nil
	}
	return os.Symlink("portolan", name)
}
