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
	daemon        memory    // of Portolan's daemon while the container ran
	removed       memory    // and after it was removed
}

// row is all samples of one number of ports.
type row struct {
	ports   int
	samples map[*subject][]sample
	idle    memory                     // of the nftables daemon, before the first container
	calls   map[string][]time.Duration // within it, by method
}

// rounds says how often a number of ports is measured: where it takes long, less
// often.
type rounds struct {
	ports int
	times map[int]int // by place in lab.subjects
}

// pairs is how often one port is measured: goals are about its median.
const pairs = 15

// memoryOf1000 is what 2,000 docker-proxies must find available, in bytes.
const memoryOf1000 = 6 << 30

func plan(quick bool, available int64) []rounds {
	slow := 1
	if quick || available < memoryOf1000 {
		slow = 0
	}
	return []rounds{
		{1, map[int]int{nftables: pairs, iptables: 5, floorPlugin: pairs, builtin: pairs, docker0: pairs}},
		{100, map[int]int{nftables: 5, iptables: 5, floorPlugin: 5, builtin: 2}},
		{1000, map[int]int{nftables: 7, iptables: 5, floorPlugin: 7, builtin: slow}},
		// Never the built-in driver: 20,000 processes, tens of gigabytes.
		{10000, map[int]int{nftables: 5, iptables: 3, floorPlugin: 5}},
	}
}

// measure fills the report.
func (r *report) measure(ctx context.Context, s *session, c config) error {
	l, err := newLab(ctx, s, c)
	if err != nil {
		return err
	}
	r.subjects, r.engine = l.subjects, l.version
	r.portolan = programVersion(filepath.Join(c.bin, "portolan"), "version")
	for _, sub := range l.subjects { // what is done only once is not measured
		if _, err := l.sample(sub, 1, false); err != nil {
			return err
		}
	}
	if c.wants("ports") {
		if err := r.measurePorts(l); err != nil {
			return err
		}
	}
	if c.wants("localhost") {
		if err := link(c.bin); err != nil {
			return err
		}
		if r.paths, err = l.traffic(s); err != nil {
			return fmt.Errorf("measure traffic: %w", err)
		}
	}
	if c.wants("shim") {
		figures, err := l.measureShim(s)
		if err != nil {
			return fmt.Errorf("measure the shim: %w", err)
		}
		r.shim = &figures
	}
	return nil
}

// measurePorts fills the rows.
func (r *report) measurePorts(l *lab) (err error) {
	if r.conntrack, err = measureConntrack(l.subjects[nftables].engine.Host); err != nil {
		return err
	}
	free, err := available()
	if err != nil {
		return err
	}
	for _, p := range plan(l.config.quick, free) {
		row, err := l.measureRow(p)
		if err != nil {
			return fmt.Errorf("measure %d ports: %w", p.ports, err)
		}
		r.rows = append(r.rows, row)
	}
	return nil
}

// measureRow lets the subjects take turns, in another order each time: what one
// leaves behind for the kernel to clean up slows down the next. Daemons are new,
// so that no row shows in the memory of the next.
func (l *lab) measureRow(p rounds) (row, error) {
	r := row{ports: p.ports, samples: map[*subject][]sample{}}
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
	shuffle := rand.New(rand.NewPCG(uint64(p.ports), 0)) // the same in every session
	for round := range maxOf(p.times) {
		for _, place := range shuffle.Perm(len(l.subjects)) {
			if round >= p.times[place] {
				continue
			}
			sub := l.subjects[place]
			one, err := l.sample(sub, p.ports, round == 0)
			if err != nil {
				return r, err
			}
			l.log("%5d ports, %s: %s to start, %s to remove", p.ports, sub.name, millis(one.start), millis(one.remove))
			r.samples[sub] = append(r.samples[sub], one)
		}
	}
	r.calls, err = d.callTimes(offset)
	return r, err
}

// sample runs and removes a container that publishes ports. With ask, the last
// port must answer meanwhile: what does not work has no speed.
func (l *lab) sample(sub *subject, ports int, ask bool) (s sample, err error) {
	namespace := sub.engine.Host.Path()
	before, err := lookAt(namespace)
	if err != nil {
		return s, err
	}
	free, err := available()
	if err != nil {
		return s, err
	}
	l.runs++
	name := fmt.Sprintf("c%d", l.runs)
	last := firstPort + ports - 1
	started := time.Now()
	_, err = l.docker(sub.engine, "run", "-d", "--name", name, "--network", sub.network,
		"-p", portRange(ports), image, "echo", "-udp", strconv.Itoa(last))
	if err != nil {
		return s, err
	}
	s.start = time.Since(started)

	left, err := available()
	if err != nil {
		return s, err
	}
	after, err := lookAt(namespace)
	if err != nil {
		return s, err
	}
	s.taken = free - left
	s.processes = processes{after.count - before.count, after.proxies - before.proxies, after.rss - before.rss}
	if sub.daemon != nil {
		if s.daemon, err = memoryOf(sub.daemon.process.PID()); err != nil {
			return s, err
		}
	}
	if ask && !sub.floor {
		if err := l.ask(sub, last); err != nil {
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

// portRange is the argument of docker run -p.
func portRange(n int) string {
	if n == 1 {
		return fmt.Sprintf("%d:%[1]d/udp", firstPort)
	}
	return fmt.Sprintf("%d-%d:%[1]d-%[2]d/udp", firstPort, firstPort+n-1)
}

func maxOf(times map[int]int) int {
	most := 0
	for _, n := range times {
		most = max(most, n)
	}
	return most
}
