package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"time"

	"github.com/portolan/portolan/internal/enginetest"
)

// sample is one container's life.
type sample struct {
	start, remove time.Duration
	processes     processes // added, while it ran
	taken         int64     // memory of the host, in bytes; noise may make it negative
	kernel        int64     // of that the kernel's slabs
	daemon        memory    // of Portolan's daemon while the container ran
	removed       memory    // and after it was removed
}

// row is all samples of one set of ports.
type row struct {
	set     portSet
	samples map[*subject][]sample
	failed  map[*subject]string        // why there are no more
	idle    memory                     // of the nftables daemon, before the first container
	calls   map[string][]time.Duration // within it, by method
}

// rounds says how often a set of ports is measured: where it takes long, less
// often.
type rounds struct {
	set   portSet
	times map[int]int // by place in lab.subjects
}

// pairs is how often none and one port are measured: goals are about the median.
const pairs = 15

// memoryOf1000 is what 2,000 docker-proxies must find available, in bytes.
const memoryOf1000 = 6 << 30

func plan(quick bool, available int64) []rounds {
	slow, proxies := 1, 1
	if quick {
		slow = 0
	}
	if quick || available < memoryOf1000 {
		proxies = 0
	}
	return []rounds{
		{noPorts, map[int]int{nftables: pairs, floorPlugin: pairs, builtin: pairs}},
		{udpPorts(1), map[int]int{nftables: pairs, iptables: 5, floorPlugin: pairs, builtin: pairs, noProxy: 5, docker0: pairs}},
		{udpPorts(100), map[int]int{nftables: 5, iptables: 5, floorPlugin: 5, builtin: 2, noProxy: 2}},
		{udpPorts(1000), map[int]int{nftables: 7, iptables: 5, floorPlugin: 7, builtin: proxies, noProxy: slow}},
		// Never the built-in driver: 20,000 processes, tens of gigabytes; or an hour.
		{udpPorts(10000), map[int]int{nftables: 5, iptables: 3, floorPlugin: 5}},
		{coturnPorts, map[int]int{nftables: 5, floorPlugin: 5}},
		{allPorts, map[int]int{nftables: 3, floorPlugin: 3}},
	}
}

// measurePorts runs and removes containers that publish ever more ports.
func measurePorts(ctx context.Context, s *session, c config) (figures, error) {
	l, err := newLab(ctx, s, c, nftables, iptables, floorPlugin, builtin, noProxy, docker0)
	if err != nil {
		return nil, err
	}
	for _, sub := range l.subjects { // what is done only once is not measured
		if _, err := l.sample(sub, udpPorts(1), false); err != nil {
			return nil, err
		}
	}
	f := &portFigures{subjects: l.subjects}
	if f.conntrack, err = measureConntrack(l.subjects[nftables].engine.Host); err != nil {
		return nil, err
	}
	free, err := available()
	if err != nil {
		return nil, err
	}
	for _, p := range plan(c.quick, free) {
		row, err := l.measureRow(p)
		if err != nil {
			return nil, fmt.Errorf("measure %s ports: %w", p.set.name, err)
		}
		f.rows = append(f.rows, row)
	}
	return f, nil
}

// measureRow lets the subjects take turns, in another order each time: what one
// leaves behind for the kernel to clean up slows down the next. Daemons are new,
// so that no row shows in the memory of the next. A subject that fails is out,
// but for the floor, without which nothing can be said.
func (l *lab) measureRow(p rounds) (row, error) {
	r := row{set: p.set, samples: map[*subject][]sample{}, failed: map[*subject]string{}}
	for _, sub := range l.subjects {
		if sub.daemon != nil {
			if err := sub.daemon.restart(); err != nil {
				return r, err
			}
		}
	}
	d := l.subjects[nftables].daemon
	offset, err := d.logged()
	if err != nil {
		return r, err
	}
	if r.idle, err = memoryOf(d.process.PID()); err != nil {
		return r, err
	}
	shuffle := rand.New(rand.NewPCG(uint64(p.set.count), 0)) // the same in every session
	for round := range maxOf(p.times) {
		for _, place := range shuffle.Perm(len(l.subjects)) {
			sub := l.subjects[place]
			if round >= p.times[place] || r.failed[sub] != "" {
				continue
			}
			one, err := l.sample(sub, p.set, round == 0)
			if l.ctx.Err() != nil || (err != nil && sub.floor) {
				return r, err
			}
			if err != nil {
				l.log("%s ports, %s: %v", p.set.name, sub.name, reason(err))
				r.failed[sub] = reason(err)
				continue
			}
			l.log("%s ports, %s: %s to start, %s to remove", p.set.name, sub.name, millis(one.start), millis(one.remove))
			r.samples[sub] = append(r.samples[sub], one)
		}
	}
	r.calls, err = d.callTimes(offset)
	return r, err
}

// sample runs and removes a container that publishes ports. With ask, one of
// them must answer meanwhile: what does not work has no speed. Where anything
// fails, no container is left.
func (l *lab) sample(sub *subject, ports portSet, ask bool) (s sample, err error) {
	l.runs++
	name := fmt.Sprintf("c%d", l.runs)
	defer func() {
		if err != nil && l.ctx.Err() == nil {
			_, _ = l.docker(sub.engine, "rm", "-f", name) // there may be none
		}
	}()
	namespace := sub.engine.Host.Path()
	before, err := lookAt(namespace)
	if err != nil {
		return s, err
	}
	free, slab, err := hostMemory()
	if err != nil {
		return s, err
	}
	args := append([]string{"run", "-d", "--name", name, "--network", sub.network}, ports.arguments()...)
	args = append(args, image, "echo", "-udp", strconv.Itoa(max(ports.last, 1)))
	started := time.Now()
	if _, err := l.docker(sub.engine, args...); err != nil {
		return s, err
	}
	s.start = time.Since(started)

	left, more, err := hostMemory()
	if err != nil {
		return s, err
	}
	after, err := lookAt(namespace)
	if err != nil {
		return s, err
	}
	s.taken, s.kernel = free-left, more-slab
	s.processes = processes{after.count - before.count, after.proxies - before.proxies, after.memory - before.memory}
	if sub.daemon != nil {
		if s.daemon, err = memoryOf(sub.daemon.process.PID()); err != nil {
			return s, err
		}
	}
	if ask && !sub.floor && ports.last > 0 {
		if err := l.ask(sub, ports.last); err != nil {
			return s, err
		}
	}

	started = time.Now()
	if _, err := l.docker(sub.engine, "rm", "-f", name); err != nil {
		return s, err
	}
	s.remove = time.Since(started)
	if sub.daemon != nil {
		s.removed, err = memoryOf(sub.daemon.process.PID())
	}
	return s, err
}

// ask sends a datagram to a published port of the host, and waits for the
// answer.
func (l *lab) ask(sub *subject, port int) error {
	demo := filepath.Join(l.config.bin, "demo")
	return enginetest.Poll(10*time.Second, func() error {
		_, err := sub.engine.Exec(demo, "send", "-timeout", "1s", "udp", fmt.Sprintf("127.0.0.1:%d", port))
		return err
	})
}

func maxOf(times map[int]int) int {
	most := 0
	for _, n := range times {
		most = max(most, n)
	}
	return most
}
