package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// watched is an engine with containers and events. Like the real one it answers
// a subscription before it is one, and then sends what has happened since the
// time asked for.
type watched struct {
	mu          sync.Mutex           // guards below
	names       map[string]string    // of containers, by ID
	endpoints   map[string][]string  // of containers, by ID
	past        []string             // events, oldest first
	times       []time.Time          // of past
	subscribers map[chan string]bool // to be told
	lists       int                  // how often it was asked for all
	hook        func()               // called when a list has been made, with mu
	end         chan struct{}        // ends all subscriptions
}

func newWatched(t *testing.T) (*rig, *watched) {
	w := &watched{names: map[string]string{}, endpoints: map[string][]string{}, subscribers: map[chan string]bool{}, end: make(chan struct{})}
	return newRig(t, w.ServeHTTP), w
}

// watch runs Watch until the test ends, or the returned function is called.
func watch(t *testing.T, r *rig) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.shim.Watch(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, receive(t, done, "Watch returns"))
	})
	t.Cleanup(stop)
	return stop
}

// run makes a container that runs, and says nothing of it.
func (w *watched) run(id, name string, endpoints ...string) {
	w.names[id], w.endpoints[id] = name, endpoints
}

// happen is an event.
func (w *watched) happen(kind, action, id string, attributes map[string]string) {
	text, _ := json.Marshal(map[string]any{
		"Type": kind, "Action": action, "scope": "local", "Actor": map[string]any{"ID": id, "Attributes": attributes},
	})
	w.past, w.times = append(w.past, string(text)), append(w.times, time.Now())
	for c := range w.subscribers {
		c <- string(text)
	}
}

func (w *watched) do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *watched) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/events":
		w.events(rw, r)
	case "/containers/json":
		w.list(rw, r)
	default:
		w.inspect(rw, strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/containers/"), "/json"))
	}
}

// list has nothing but IDs: the real one may be late with the rest.
func (w *watched) list(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lists++
	list := []map[string]string{}
	for id := range w.names {
		list = append(list, map[string]string{"Id": id})
	}
	if w.hook != nil {
		w.hook()
	}
	text, _ := json.Marshal(list)
	writeJSON(rw, 200, string(text))
}

func (w *watched) inspect(rw http.ResponseWriter, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name, ok := w.names[id]
	if !ok {
		writeJSON(rw, 404, `{"message":"No such container"}`)
		return
	}
	networks := map[string]any{}
	for i, ep := range w.endpoints[id] {
		networks[strconv.Itoa(i)] = map[string]string{"EndpointID": ep}
	}
	text, _ := json.Marshal(map[string]any{"Id": id, "Name": "/" + name, "NetworkSettings": map[string]any{"Networks": networks}})
	writeJSON(rw, 200, string(text))
}

func (w *watched) events(rw http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(rw).Flush()
	c := make(chan string, 1000)
	w.mu.Lock()
	end := w.end
	since, _ := strconv.ParseFloat(r.URL.Query().Get("since"), 64)
	for i, text := range w.past {
		if float64(w.times[i].UnixNano())/1e9 >= since {
			c <- text
		}
	}
	w.subscribers[c] = true
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.subscribers, c)
		w.mu.Unlock()
	}()
	for {
		select {
		case text := <-c:
			fmt.Fprintln(rw, text)
			_ = http.NewResponseController(rw).Flush()
		case <-end:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// knows makes endpoints the daemon's.
func (r *rig) knows(endpoints ...string) {
	r.daemon.set(func(d *daemon) {
		if d.endpoints == nil {
			d.endpoints = map[string]Endpoint{}
		}
		for _, ep := range endpoints {
			d.endpoints[ep] = Endpoint{}
		}
	})
}

func (r *rig) told() (n int) {
	r.daemon.set(func(d *daemon) { n = d.told })
	return n
}

// owned waits until the daemon was told of an owner.
func (r *rig) owned(endpoint, id, name string) {
	r.t.Helper()
	eventually(r.t, func() bool { return r.daemon.owner(endpoint) == Owner{id, name} }, endpoint+" is of "+name)
}

func TestWatch(t *testing.T) {
	r, w := newWatched(t)
	r.knows("e1", "e2")
	w.run("c1", "web", "e1", "docker0's")
	w.run("c2", "plain", "other")
	stop := watch(t, r)
	r.owned("e1", "c1", "web")
	assert.Equal(t, 1, r.told(), "endpoints of other drivers are not Portolan's business")

	r.knows("e3")
	w.do(func() { w.run("c3", "dns", "e3"); w.happen("container", "start", "c3", nil) })
	r.owned("e3", "c3", "dns")

	w.do(func() {
		w.names["c3"] = "dns2"
		w.happen("container", "rename", "c3", map[string]string{"name": "dns2"})
	})
	r.owned("e3", "c3", "dns2")

	w.do(func() {
		w.endpoints["c2"] = []string{"other", "e2"}
		w.happen("network", "connect", "n1", map[string]string{"container": "c2"})
	})
	r.owned("e2", "c2", "plain")

	w.do(func() { w.happen("container", "start", "c1", nil) })
	w.do(func() { w.happen("container", "start", "gone", nil) })
	r.knows("e4")
	w.do(func() { w.run("c4", "last", "e4"); w.happen("container", "start", "c4", nil) })
	r.owned("e4", "c4", "last")
	assert.Equal(t, 5, r.told(), "what the daemon knows it is not told again")
	w.do(func() { assert.Equal(t, 1, w.lists, "all are looked at once") })
	stop()
}

// The recorded events are understood.
func TestRecordedEvents(t *testing.T) {
	for _, version := range versions {
		todo := newAgenda()
		text := fixture(t, version, "events.json")
		var c struct {
			ID string `json:"Id"`
		}
		require.NoError(t, json.Unmarshal([]byte(fixture(t, version, "web.json")), &c))
		require.ErrorContains(t, readEvents(strings.NewReader(text), todo), "ended")
		all, ids := todo.take()
		assert.False(t, all)
		assert.Equal(t, []string{c.ID}, ids, "start, rename and connect are all of it")
		require.ErrorContains(t, readEvents(strings.NewReader(`{"Type":`), todo), "read the engine's events")
	}
}

// A container that starts between our subscription and our look at all is
// neither in the one nor in the other, unless the engine is asked for the past.
func TestWatchLosesNothing(t *testing.T) {
	r, w := newWatched(t)
	r.knows("e1", "e2")
	w.run("c1", "web", "e1")
	once := sync.OnceFunc(func() { // the list was made before c2
		w.run("c2", "late", "e2")
		w.happen("container", "start", "c2", nil)
	})
	w.hook = once
	watch(t, r)
	r.owned("e1", "c1", "web")
	r.owned("e2", "c2", "late")
}

func TestSubscription(t *testing.T) {
	query := make(chan url.Values, 1)
	r := newRig(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case query <- r.URL.Query():
		default:
		}
		<-r.Context().Done()
	})
	before := time.Now()
	watch(t, r)
	q := receive(t, query, "a subscription")
	seconds, err := strconv.ParseFloat(q.Get("since"), 64)
	require.NoError(t, err)
	assert.InDelta(t, float64(before.UnixNano())/1e9, seconds, soon.Seconds())
	assert.JSONEq(t, `{"type":["container","network"],"event":["start","rename","connect"]}`, q.Get("filters"))
}

// After the engine's restart all is looked at again: what happened meanwhile
// was no event for us.
func TestWatchReconnects(t *testing.T) {
	r, w := newWatched(t)
	r.knows("e1", "e2")
	w.run("c1", "web", "e1")
	watch(t, r)
	r.owned("e1", "c1", "web")
	w.do(func() {
		close(w.end)
		w.end = make(chan struct{})
		w.run("c2", "meanwhile", "e2")
	})
	r.owned("e2", "c2", "meanwhile")
	r.stopEngine()
	eventually(t, func() bool { return r.logged.count("the engine does not answer") > 0 }, "the log says that the engine is away")
	r.knows("e3")
	w.do(func() { w.run("c3", "later", "e3") })
	r.startEngine(w.ServeHTTP)
	r.owned("e3", "c3", "later")
	assert.Equal(t, 3, r.told())
	assert.Positive(t, r.logged.count("the engine answers again"))
}

// A daemon that is away, or refuses, is told later.
func TestWatchDaemonAway(t *testing.T) {
	r, w := newWatched(t)
	r.knows("e1")
	w.run("c1", "web", "e1")
	r.daemon.set(func(d *daemon) { d.away = errors.New("no daemon") })
	watch(t, r)
	eventually(t, func() bool { return r.logged.count("the Portolan daemon does not answer") == 1 }, "the log says so, once")
	r.knows("e2")
	w.do(func() { w.run("c2", "dns", "e2"); w.happen("container", "start", "c2", nil) })
	r.daemon.set(func(d *daemon) { d.away = nil })
	r.owned("e1", "c1", "web")
	r.owned("e2", "c2", "dns")
	assert.Equal(t, 1, r.logged.count("the Portolan daemon does not answer"))
	assert.Equal(t, 1, r.logged.count("the Portolan daemon answers again"))
}

// An endpoint whose owner the daemon does not take is tried again, and the others
// do not wait for that.
func TestWatchOneRefused(t *testing.T) {
	r, w := newWatched(t)
	r.knows("e0")
	r.daemon.set(func(d *daemon) { d.refused = "e0" })
	w.run("c0", "odd", "e0")
	watch(t, r)
	at := "does not know all owners yet"
	eventually(t, func() bool { return r.logged.count(at) > 0 }, "a refusal")
	lists := func() (n int) { w.do(func() { n = w.lists }); return n }
	atOnce := false
	for i := 1; i < 20 && !atOnce; i++ { // a busy machine may take as long as the pause
		before := lists()
		ep, id := fmt.Sprint("e", i), fmt.Sprint("c", i)
		r.knows(ep)
		w.do(func() { w.run(id, "name-"+id, ep); w.happen("container", "start", id, nil) })
		r.owned(ep, id, "name-"+id)
		atOnce = lists() == before
	}
	assert.True(t, atOnce, "told before all are looked at again")
	r.daemon.set(func(d *daemon) { d.refused = "" })
	r.owned("e0", "c0", "odd")
}

// Whatever happens at once is a few questions, and the events are read all the
// time.
func TestWatchManyEvents(t *testing.T) {
	r, w := newWatched(t)
	stuck := make(chan struct{})
	r.daemon.stuck = stuck
	watch(t, r)
	w.do(func() { w.run("c0", "first") })
	const n = 1000
	for i := range n {
		ep, id := fmt.Sprint("e", i), fmt.Sprint("c", i)
		r.knows(ep)
		w.do(func() { w.run(id, "name-"+id, ep) })
	}
	eventually(t, func() bool {
		var subscribed bool
		w.do(func() { subscribed = len(w.subscribers) == 1 })
		return subscribed
	}, "a subscription")
	for i := range n {
		w.do(func() { w.happen("container", "start", fmt.Sprint("c", i), nil) })
	}
	close(stuck)
	r.daemon.set(func(d *daemon) { d.stuck = nil })
	r.owned("e999", "c999", "name-c999")
	r.owned("e0", "c0", "name-c0")
	var asked int
	r.daemon.set(func(d *daemon) { asked = d.asked })
	assert.Less(t, asked, n/10)
}

func TestBackoff(t *testing.T) {
	var b backoff
	var got []time.Duration
	for range 7 {
		got = append(got, b.next()/time.Second)
	}
	assert.Equal(t, []time.Duration{1, 2, 4, 8, 16, 30, 30}, got)
	b.reset()
	assert.Equal(t, time.Second, b.next())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	assert.False(t, b.wait(ctx))
}
