package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/portolan/portolan/internal/enginetest"
)

const (
	shimContainers = 100
	shimPairs      = 2000  // of requests for the list, straight and by the shim
	shimRequests   = 10000 // for memory
	shimSaves      = 7     // pairs
	saveSize       = 200 << 20
)

// way is one way to the engine: straight, or by the shim.
type way struct {
	client *http.Client
	lists  []time.Duration
	saves  []time.Duration // a save of saveSize bytes
}

func newWay(socket string) *way {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &way{client: &http.Client{Transport: &http.Transport{DialContext: dial, DisableCompression: true}}}
}

// get reads an answer to its end and says how long that took, and how much it
// was.
func (w *way) get(ctx context.Context, path string) (took time.Duration, size int64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	resp, err := w.client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	size, err = io.Copy(io.Discard, resp.Body)
	took = time.Since(began)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return took, size, err
}

// shimFigures is what the shim costs.
type shimFigures struct {
	plain
	straight, shim *way
	first, last    memory // after shimPairs lists, and after shimRequests more
}

func measureShim(ctx context.Context, s *session, c config) (figures, error) {
	l, err := newLab(ctx, s, c, nftables)
	if err != nil {
		return nil, err
	}
	f, err := l.measureShim(s)
	return &f, err
}

// measureShim lists 100 containers with a published port each, and saves an
// image, by the shim and straight in turns.
func (l *lab) measureShim(s *session) (f shimFigures, err error) {
	sub := l.subjects[nftables]
	e := sub.engine
	socket := filepath.Join(e.Dir, "shim.sock")
	p, err := enginetest.Start("shim", filepath.Join(e.Dir, "shim.log"), e.Command(sub.daemon.program, "shim",
		"--listen", socket, "--engine", filepath.Join(e.Dir, "docker.sock"), "--socket", sub.daemon.socket))
	if err != nil {
		return f, err
	}
	s.Cleanup(func() { _ = p.Stop(syscall.SIGTERM, 10*time.Second) })
	if err := listening(p, socket); err != nil {
		return f, err
	}
	f = shimFigures{straight: newWay(filepath.Join(e.Dir, "docker.sock")), shim: newWay(socket)}
	names := make([]string, shimContainers)
	for i := range names {
		names[i] = fmt.Sprintf("listed%d", i)
		if _, err := l.docker(e, "run", "-d", "--name", names[i], "--network", sub.network,
			"-p", fmt.Sprintf("%d:53/udp", firstPort+i), image, "echo", "udp/53"); err != nil {
			return f, err
		}
	}
	l.log("%d containers run", shimContainers)
	if err := f.list(l.ctx, p.PID()); err != nil {
		return f, err
	}
	if _, err := l.docker(e, append([]string{"rm", "-f"}, names...)...); err != nil {
		return f, err
	}
	return f, l.save(&f, e)
}

func (f *shimFigures) list(ctx context.Context, pid int) error {
	ways := []*way{f.straight, f.shim}
	for range shimPairs {
		for _, i := range rand.Perm(len(ways)) {
			took, _, err := ways[i].get(ctx, "/containers/json")
			if err != nil {
				return err
			}
			ways[i].lists = append(ways[i].lists, took)
		}
	}
	var err error
	if f.first, err = memoryOf(pid); err != nil {
		return err
	}
	for range shimRequests {
		if _, _, err := f.shim.get(ctx, "/containers/json"); err != nil {
			return err
		}
	}
	f.last, err = memoryOf(pid)
	return err
}

// save makes an image of noise, which is the same work for every layer store,
// and saves it.
func (l *lab) save(f *shimFigures, e *enginetest.Engine) error {
	dir, err := os.MkdirTemp(e.Dir, "noise")
	if err != nil {
		return err
	}
	noise := filepath.Join(dir, "noise")
	if err := writeNoise(noise, saveSize); err != nil {
		return err
	}
	if err := e.Load("noise", noise); err != nil {
		return err
	}
	ways := []*way{f.straight, f.shim}
	for round := range shimSaves + 1 {
		for _, i := range rand.Perm(len(ways)) {
			took, size, err := ways[i].get(l.ctx, "/images/noise/get")
			if err != nil {
				return err
			}
			if size < saveSize {
				return fmt.Errorf("save an image: %d bytes came", size)
			}
			if round > 0 { // the first brings it into memory
				ways[i].saves = append(ways[i].saves, took)
			}
		}
	}
	return nil
}

func writeNoise(path string, size int64) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.CopyN(file, rand.NewChaCha8([32]byte{}), size); err != nil {
		return err
	}
	return file.Close()
}

// percentile is the smallest value that so many of a hundred do not exceed.
func percentile(values []time.Duration, of int) time.Duration {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)*of+99)/100-1]
}

func (f *shimFigures) tables() string {
	t := table{head: []string{"Docker API", "list of " + grouped(shimContainers) + " containers, median", "p99", "save of 200 MiB, median", "rate"}}
	for _, w := range []struct {
		name string
		way  *way
	}{{"straight", f.straight}, {"by the shim", f.shim}} {
		save := median(w.way.saves)
		t.add(w.name, millis(median(w.way.lists)), millis(percentile(w.way.lists, 99)), millis(save),
			fmt.Sprintf("%.0f MiB/s", float64(saveSize>>20)/save.Seconds()))
	}
	return section("The shim, beside the engine's own socket", t) +
		fmt.Sprintf("\n%s pairs of lists over kept connections, %d pairs of saves, in random order. The shim's resident memory: %s MiB after the first %s lists, %s MiB after %s more, %s MiB at its peak.\n",
			grouped(shimPairs), shimSaves, mib(f.first.rss), grouped(shimPairs), mib(f.last.rss), grouped(shimRequests), mib(f.last.peak))
}

func (f *shimFigures) goals() []goal {
	more := median(f.shim.lists) - median(f.straight.lists)
	slow := percentile(f.shim.lists, 99) - percentile(f.straight.lists, 99)
	rate := float64(median(f.straight.saves)) / float64(median(f.shim.saves))
	return []goal{
		{"list of 100 containers by the shim: at most 2 ms more at the median", millis(more), more <= 2*time.Millisecond},
		{"and 5 ms more at p99", millis(slow), slow <= 5*time.Millisecond},
		{"save of 200 MiB by the shim: at least 0.9 of the rate", fmt.Sprintf("%.2f", rate), rate >= 0.9},
		{"shim: under 30 MiB resident after 10,000 lists, at its peak", mib(f.last.peak) + " MiB", f.last.peak < 30<<20},
	}
}
