package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
)

// shortName is the driver's name without repository and tag, and that of the
// socket of a daemon that is no managed plugin.
const shortName = "portolan"

// maxRequest is the longest request body in bytes that is looked at. That of the
// largest compose project has a few thousand.
const maxRequest = 4 << 20

// readBody is the request's body where it is JSON of an object. In any case the
// request can be forwarded after it.
func readBody(r *http.Request) (d doc, root span, ok bool) {
	if r.ContentLength > maxRequest || r.Header.Get("Content-Encoding") != "" {
		return nil, span{}, false
	}
	var body bytes.Buffer
	n, err := io.Copy(&body, io.LimitReader(r.Body, maxRequest+1))
	text := body.Bytes()
	r.Body = readCloser{io.MultiReader(&body, r.Body), r.Body} // fails again where it has
	if err != nil || n > maxRequest {
		return nil, span{}, false
	}
	r.Header.Del("Expect") // 100-continue was sent when the body was read
	d, root, ok = parse(text)
	return d, root, ok && d[root.from] == '{'
}

// replaceBody gives a request another body.
func replaceBody(r *http.Request, text []byte) {
	r.Body = readCloser{bytes.NewReader(text), r.Body}
	r.ContentLength = int64(len(text))
}

// createNetwork answers POST /networks/create: the driver is the installed
// plugin where it is given as portolan, and with Config.TakeOver also where it
// would be Docker's bridge.
func (s *Shim) createNetwork(w http.ResponseWriter, r *http.Request) {
	d, root, ok := readBody(r)
	if ok {
		var driver string
		switch name, _ := d.member(root, "Driver"); {
		case name == shortName:
			driver = s.plugin(r.Context())
		case s.cfg.TakeOver && d.takesOver(root, s.cfg.Options):
			var err error
			if driver, err = s.driver(r.Context()); err != nil {
				s.cfg.Log.Warn("a network stays Docker's", "err", err)
			}
		}
		if driver != "" {
			text, _ := json.Marshal(driver) // a string
			replaceBody(r, d.apply([]edit{d.set(root, "Driver", text)}))
		}
	}
	s.forward(w, r, nil)
}

// member is the text of an object's member; empty where it has none, or null.
// ok is false where it is no text.
func (d doc) member(object span, name string) (text string, ok bool) {
	value, found := d.get(object, name)
	if !found || d[value.from] == 'n' {
		return "", true
	}
	return d.str(value)
}

// plugin is the full name, with its tag, of the enabled managed plugin whose
// short name is portolan; empty where there is none. Of several it is the one
// that --alias portolan names, or else the first by name.
func (s *Shim) plugin(ctx context.Context) string {
	plugins, err := s.engine.plugins(ctx)
	if err != nil {
		s.cfg.Log.Warn("the engine's plugins are not known", "err", err)
		return ""
	}
	var names []string
	for _, p := range plugins {
		base, _, _ := strings.Cut(path.Base(p.Name), ":")
		if base == shortName {
			names = append(names, p.Name)
		}
	}
	if alias := shortName + ":latest"; slices.Contains(names, alias) {
		return alias
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}

// managed is a managed plugin.
type managed struct {
	ID      string `json:"Id"`
	Name    string // with its tag
	Enabled bool
	Config  struct{ Interface struct{ Types []string } }
}

// plugins are the enabled network drivers among the engine's managed plugins.
func (e *engine) plugins(ctx context.Context) (drivers []managed, err error) {
	var all []managed
	if err := e.get(ctx, "/plugins", &all); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(p managed) bool {
		return !p.Enabled || !slices.Contains(p.Config.Interface.Types, "docker.networkdriver/1.0")
	}), nil
}
