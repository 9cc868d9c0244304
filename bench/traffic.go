package main

import (
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
	trafficTime   = time.Second // of one load
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
	{"TCP, 32 clients", load.Spec{Kind: load.TCP, Clients: 32}},
	{"TCP connections", load.Spec{Kind: load.Connect, Clients: 32}},
	{"TCP bulk", load.Spec{Kind: load.Bulk}},
}

// path is one way from the host to a server in a container.
type path struct {
	name   string
	to     netip.AddrPort // of UDP and TCP; the sink's port is the one after
	noUDP  bool
	direct int   // its direct path's place, its own for a direct one
	pids   []int // who carries it, where that is a process
	rates  [][]float64
	lost   []int64
	cpu    [][]time.Duration // for each answer
}

func (p *path) carries(k load.Kind) bool { return !p.noUDP || k != load.UDP }

// traffic measures all paths, which take turns.
func (l *lab) traffic(s *session) ([]*path, error) {
	paths, err := l.paths(s)
	if err != nil {
		return nil, err
	}
	e := l.subjects[nftables].engine
	for _, p := range paths {
		p.rates, p.lost = make([][]float64, len(loads)), make([]int64, len(loads))
		p.cpu = make([][]time.Duration, len(loads))
	}
	for round := range trafficRounds {
		for i, what := range loads {
			for _, place := range rand.Perm(len(paths)) {
				p := paths[place]
				if !p.carries(what.spec.Kind) {
					continue
				}
				if err := l.carry(e, p, i); err != nil {
					return nil, fmt.Errorf("%s over %s: %w", what.name, p.name, err)
				}
			}
		}
		l.log("traffic: round %d of %d", round+1, trafficRounds)
	}
	return paths, nil
}

// carry runs one load over one path.
func (l *lab) carry(e *enginetest.Engine, p *path, i int) error {
	spec := loads[i].spec
	spec.To, spec.For = p.to, trafficTime
	switch spec.Kind {
	case load.Bulk:
		spec.To = netip.AddrPortFrom(p.to.Addr(), p.to.Port()+1)
	case load.Connect:
		// Whoever leaves ports in TIME_WAIT is not to hinder the next.
		if _, err := enginetest.Run(e.Command("ss", "-K", "state", "time-wait")); err != nil {
			return err
		}
	}
	before, err := cpuOf(p.pids)
	if err != nil {
		return err
	}
	r, err := client(e, spec)
	if err != nil {
		return err
	}
	after, err := cpuOf(p.pids)
	if err != nil {
		return err
	}
	rate := r.Rate()
	if spec.Kind == load.Bulk {
		rate = r.Gbits()
	} else {
		p.cpu[i] = append(p.cpu[i], (after-before)/time.Duration(max(r.Answers, 1)))
	}
	p.rates[i] = append(p.rates[i], rate)
	p.lost[i] += r.Lost
	return l.ctx.Err()
}

// client is this program as a client in the engine's namespace.
func client(e *enginetest.Engine, spec load.Spec) (r load.Result, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	out, err := enginetest.Run(e.Command(self, "load", spec.MarshalArgument()))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal([]byte(out), &r)
}

// The places of the direct paths.
const (
	direct4 = iota
	direct6
)

// paths starts servers and proxies.
func (l *lab) paths(s *session) ([]*path, error) {
	sub, built := l.subjects[nftables], l.subjects[builtin]
	e := sub.engine
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := e.Load(loadImage, self); err != nil {
		return nil, err
	}
	if _, err := l.docker(e, "network", "create", "-d", sub.daemon.driver, "--ipv6", "--subnet", "fd00:b::/64", "both"); err != nil {
		return nil, err
	}
	// serve starts a server whose ports are published on other ones, as most are.
	serve := func(network string, port int) (v4, v6 netip.Addr, err error) {
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
	v4, v6, err := serve("both", 7100)
	if err != nil {
		return nil, err
	}
	if _, _, err := serve(sub.network, 7200); err != nil { // IPv4 only
		return nil, err
	}
	if _, _, err := serve(built.network, 7300); err != nil {
		return nil, err
	}
	at := func(host string, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(host), port)
	}
	daemon := []int{sub.daemon.process.PID()}
	paths := []*path{
		direct4: {name: "straight to the container, IPv4", to: netip.AddrPortFrom(v4, load.UDPPort), direct: direct4},
		direct6: {name: "straight to the container, IPv6", to: netip.AddrPortFrom(v6, load.UDPPort), direct: direct6},
		{name: "Portolan, 127.0.0.1", to: at("127.0.0.1", 7100), direct: direct4},
		{name: "Portolan, the host's IPv4 address", to: at(enginetest.HostIPv4, 7100), direct: direct4},
		{name: "Portolan, [::1]", to: at("::1", 7100), direct: direct6, pids: daemon},
		{name: "Portolan, the host's IPv6 address", to: at(enginetest.HostIPv6, 7100), direct: direct6},
		{name: "Portolan, [::1] of an IPv4-only container", to: at("::1", 7200), direct: direct4, pids: daemon},
		{name: "built-in bridge, 127.0.0.1", to: at("127.0.0.1", 7300), direct: direct4},
	}
	for _, p := range peers(l.config.bin) {
		if _, err := exec.LookPath(p.program); err != nil {
			l.log("traffic: %s is not here", p.name)
			continue
		}
		pids, err := l.startPeer(s, e, p, v4)
		if err != nil {
			return nil, err
		}
		one := &path{name: p.name, to: at("127.0.0.1", uint16(p.port)), noUDP: p.noUDP, direct: direct4}
		if !p.noCPU {
			one.pids = pids
		}
		paths = append(paths, one)
	}
	for _, p := range paths {
		if err := answers(e, p); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// answers waits until a path carries everything.
func answers(e *enginetest.Engine, p *path) error {
	for _, what := range loads {
		if !p.carries(what.spec.Kind) {
			continue
		}
		spec := load.Spec{Kind: what.spec.Kind, To: p.to, For: 50 * time.Millisecond}
		if spec.Kind == load.Bulk {
			spec.To = netip.AddrPortFrom(p.to.Addr(), p.to.Port()+1)
		}
		err := enginetest.Poll(20*time.Second, func() error {
			r, err := client(e, spec)
			if err == nil && r.Answers+r.Bytes == 0 {
				err = errors.New("no answer")
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("%s does not carry %s: %w", p.name, what.name, err)
		}
	}
	return nil
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

// trafficTables is a line for each path.
func (r *report) trafficTables() string {
	if len(r.paths) == 0 {
		return ""
	}
	head := []string{"path"}
	for _, what := range loads {
		head = append(head, what.name)
	}
	rates, cpu := table{head: head}, table{head: head[:len(head)-1]}
	for _, p := range r.paths {
		cells, burnt := []string{p.name}, []string{p.name}
		for i, what := range loads {
			cells = append(cells, r.rateCell(p, i))
			switch {
			case what.spec.Kind == load.Bulk:
			case len(p.pids) == 0 || len(p.cpu[i]) == 0:
				burnt = append(burnt, "")
			default:
				burnt = append(burnt, fmt.Sprintf("%.1f µs", float64(median(p.cpu[i]).Nanoseconds())/1000))
			}
		}
		rates.add(cells...)
		if len(p.pids) > 0 {
			cpu.add(burnt...)
		}
	}
	return section("Traffic from the host, answers a second (bulk: Gbit/s), and what part that is of the straight path", rates) +
		section("Processor time of the proxy for each answer", cpu)
}

func (r *report) rateCell(p *path, i int) string {
	if len(p.rates[i]) == 0 {
		return "–"
	}
	rate, form := median(p.rates[i]), "%.0f (%.2f)"
	if loads[i].spec.Kind == load.Bulk {
		form = "%.1f (%.2f)"
	}
	text := fmt.Sprintf(form, rate, rate/median(r.paths[p.direct].rates[i]))
	if p.lost[i] > 0 {
		text += fmt.Sprintf(", %s lost", grouped(int(p.lost[i])))
	}
	return text
}

// ratioTo is a path's rate by another's of the same rounds, or 0.
func (r *report) ratioTo(name, other string, i int) float64 {
	var a, b *path
	for _, p := range r.paths {
		switch p.name {
		case name:
			a = p
		case other:
			b = p
		}
	}
	if a == nil || b == nil || len(a.rates[i]) == 0 || len(b.rates[i]) == 0 {
		return 0
	}
	var all []float64
	for round := range min(len(a.rates[i]), len(b.rates[i])) {
		all = append(all, a.rates[i][round]/b.rates[i][round])
	}
	return median(all)
}

// trafficGoals are the lines of goals about traffic.
func (r *report) trafficGoals(t *table) {
	if len(r.paths) == 0 {
		return
	}
	four := r.paths[direct4].name
	for i, what := range loads {
		ratio := r.ratioTo("Portolan, 127.0.0.1", four, i)
		t.add("127.0.0.1, "+what.name+": at least 0.9 of straight", fmt.Sprintf("%.2f", ratio), verdict(ratio >= 0.9))
	}
}

// link makes portolan-proxy of portolan, for peers.
func link(bin string) error {
	name := filepath.Join(bin, "portolan-proxy")
	if _, err := os.Lstat(name); err == nil {
		return nil
	}
	return os.Symlink("portolan", name)
}
