package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// stuckAfter is how long a task may take at a time: one that takes longer waits
// for a kernel or a lock that does not answer. The engine's calls give up later.
const stuckAfter = 20 * time.Second

// health is what the daemon knows of its own condition. The zero value is a
// daemon that has not restored its state.
type health struct {
	mu       sync.Mutex // guards below
	restored bool
	tasks    map[string]taskHealth
	lost     []string // what is gone, and may come back
	others   []func(time.Time) []string
}

// taskHealth is how a task fares.
type taskHealth struct {
	since time.Time // when it began what it is at; zero between two times
	err   string    // how the last time ended
}

// ready says that state is restored, to systemd too.
func (h *health) ready(log *slog.Logger) {
	h.mu.Lock()
	h.restored = true
	h.mu.Unlock()
	notifyReady(log)
}

// lose is all that is gone by now.
func (h *health) lose(what []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost = what
}

// also asks others for what is wrong.
func (h *health) also(ask func(time.Time) []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.others = append(h.others, ask)
}

// watch is a task that notes when it begins and how it ends, each time.
func (h *health) watch(t task) task {
	p, ok := t.(periodic)
	if !ok {
		return t
	}
	do := p.do
	p.do = func() error {
		h.note(p.name, taskHealth{since: time.Now()})
		err := do()
		ended := taskHealth{}
		if err != nil {
			ended.err = oneLine(err)
		}
		h.note(p.name, ended)
		return err
	}
	return p
}

// note keeps what went wrong the last time until this time has ended.
func (h *health) note(name string, now taskHealth) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tasks == nil {
		h.tasks = map[string]taskHealth{}
	}
	if !now.since.IsZero() {
		now.err = h.tasks[name].err
	}
	h.tasks[name] = now
}

// hanging are the tasks that do not come to an end, in words.
func (h *health) hanging(now time.Time) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hangingLocked(now)
}

func (h *health) hangingLocked(now time.Time) (list []string) {
	for name, t := range h.tasks {
		if took := now.Sub(t.since); !t.since.IsZero() && took > stuckAfter {
			list = append(list, fmt.Sprintf("%s: no end for %s", name, took.Round(time.Second)))
		}
	}
	return list
}

// problems are in words, none when all is well.
func (h *health) problems(now time.Time) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := append([]string{}, h.lost...) // [], not null
	if !h.restored {
		list = append(list, "the state is being restored")
	}
	for _, ask := range h.others {
		list = append(list, ask(now)...)
	}
	for name, t := range h.tasks {
		if t.err != "" {
			list = append(list, fmt.Sprintf("%s: %s", name, t.err))
		}
	}
	list = append(list, h.hangingLocked(now)...)
	slices.Sort(list)
	return list
}

// healthResponse is the answer of /Plugin.Health.
type healthResponse struct {
	Healthy  bool
	Problems []string
	Err      string `json:",omitempty"` // the same in one line
}

// withHealth also answers /Plugin.Health, at any time and at once: with status
// 200 and {"Healthy":true,"Problems":[]}, or with 503 and what is wrong.
func withHealth(next http.Handler, h *health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", next)
	mux.HandleFunc("/Plugin.Health", func(w http.ResponseWriter, _ *http.Request) {
		r := healthResponse{Problems: h.problems(time.Now())}
		r.Healthy, r.Err = len(r.Problems) == 0, strings.Join(r.Problems, "; ")
		w.Header().Set("Content-Type", "application/json")
		if !r.Healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(r) // who asked has gone
	})
	return mux
}

// losses are a state that could not be read, and ports that another process has.
// It waits for calls that publish.
func losses(st *store.Store, publisher *portmap.Publisher) (list []string) {
	if file := st.Damaged(); file != "" {
		list = append(list, "the state was damaged, and the daemon has begun without it: "+file)
	}
	for _, ep := range st.Endpoints() {
		for _, m := range publisher.Lost(ep.ID) {
			list = append(list, fmt.Sprintf("endpoint %.12s: %s is taken by another process", ep.ID, m))
		}
	}
	return list
}
