package shim

import (
	"errors"
	"net/http"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Without the daemon every request is as without the shim, and the log says so
// once.
func TestDaemonAway(t *testing.T) {
	bodies := map[string]string{
		"/containers/json":                fixture(t, "29", "list.json"),
		"/v1.41/containers/web/json":      fixture(t, "29", "web.json"),
		"/v1.52/system/df":                fixture(t, "29", "df.json"),
		"/containers/json?" + publish80(): "[]\n",
	}
	r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, 200, bodies[r.RequestURI])
	})
	endpoints := fixtureEndpoints(t, "29")
	r.daemon.set(func(d *daemon) { d.away = errors.New("no daemon"); d.endpoints = endpoints })
	for range 3 {
		for path, body := range bodies {
			assert.Equal(t, body, r.get(path), path)
		}
	}
	assert.Equal(t, 1, r.logged.count("the Portolan daemon does not answer"))
	assert.Zero(t, r.logged.count("answers again"))
	r.daemon.set(func(d *daemon) { d.away = nil })
	assert.Contains(t, r.get("/containers/json"), `"PublicPort":53530`)
	assert.Equal(t, 1, r.logged.count("the Portolan daemon answers again"))
}

// publish80 is a query that asks for containers that publish port 80.
func publish80() string { return "filters=" + url.QueryEscape(`{"publish":["80"]}`) }

// A daemon that hangs makes nobody wait for long, nor those who need it not.
func TestDaemonStuck(t *testing.T) {
	list := fixture(t, "29", "list.json")
	r := newRig(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/containers/nosuch/json" {
			writeJSON(w, 404, `{"message":"no such container"}`)
			return
		}
		writeJSON(w, 200, list)
	})
	stuck := make(chan struct{})
	r.daemon.stuck = stuck
	endpoints := fixtureEndpoints(t, "29")
	r.daemon.set(func(d *daemon) { d.endpoints = endpoints })
	_, body := r.do(http.MethodGet, "/containers/nosuch/json", "")
	assert.Equal(t, `{"message":"no such container"}`, body)
	assert.Zero(t, r.logged.count("the Portolan daemon"), "nobody has waited")
	assert.Equal(t, list, r.get("/containers/json"))
	assert.Equal(t, list, r.get("/containers/json?"+publish80()))
	eventually(t, func() bool { return r.logged.count("the Portolan daemon does not answer") == 1 }, "who asks does not wait for the log")

	// Whoever asks a hundred times waits for the first one only.
	asked := func() (n int) { r.daemon.set(func(d *daemon) { n = d.asked }); return n }
	before := asked()
	for range 100 {
		assert.Equal(t, list, r.get("/containers/json"))
	}
	assert.Less(t, asked(), before+50, "most have not asked")
	r.daemon.set(func(d *daemon) { d.stuck = nil })
	close(stuck)
	eventually(t, func() bool { return r.get("/containers/json") != list }, "ports again")
	assert.Equal(t, 1, r.logged.count("the Portolan daemon answers again"))
}
