package shim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
)

// takeOverWarning is in `docker info`.
const takeOverWarning = "WARNING: Portolan's take-over is on: networks without a driver and containers that publish ports are on Portolan, not on Docker's bridge"

// The default network of take-over. A network of that name that somebody else
// has made is used if it has the label.
const (
	defaultNetwork = "portolan"
	defaultLabel   = "portolan.take-over"
)

// takesOver says whether the body of POST /networks/create asks for what
// Docker's bridge would do on this host, and the driver can do.
func (d doc) takesOver(root span, known []string) bool {
	driver, ok := d.member(root, "Driver")
	scope, ok2 := d.member(root, "Scope")
	if !ok || !ok2 || driver != "" && driver != "bridge" || scope != "" && scope != "local" {
		return false
	}
	for _, name := range []string{"Ingress", "ConfigOnly", "ConfigFrom"} {
		if d.isSet(root, name) {
			return false
		}
	}
	if options, ok := d.get(root, "Options"); ok {
		for key := range d.members(options) {
			if name, _ := d.str(key); !slices.Contains(known, name) {
				return false
			}
		}
	}
	return true
}

// isSet says whether a member is there, and is not what stands for nothing in
// its type.
func (d doc) isSet(object span, name string) bool {
	value, ok := d.get(object, name)
	if !ok {
		return false
	}
	for range d.members(value) {
		return true
	}
	for range d.elements(value) {
		return true
	}
	return strings.IndexByte("{[", d[value.from]) < 0 &&
		!slices.Contains([]string{"null", "false", `""`}, string(d.text(value)))
}

// driver is the name under which the engine knows the daemon that answers: that
// of its plugin, or that of its socket where it is none.
func (s *Shim) driver(ctx context.Context) (string, error) {
	if _, err := s.ask(ctx)(); err != nil {
		return "", fmt.Errorf("no Portolan daemon answers: %w", err)
	}
	socket, err := s.cfg.Daemon.Socket(ctx)
	if err != nil {
		return "", fmt.Errorf("no Portolan daemon answers: %w", err)
	}
	id := filepath.Base(filepath.Dir(socket))
	if b, err := hex.DecodeString(id); err != nil || len(b) != sha256.Size {
		return strings.TrimSuffix(filepath.Base(socket), ".sock"), nil
	}
	plugins, err := s.engine.plugins(ctx)
	if err != nil {
		return "", err
	}
	for _, p := range plugins {
		if p.ID == id {
			return p.Name, nil
		}
	}
	return "", fmt.Errorf("the daemon at %s is none of the engine's plugins", socket)
}

// createContainer answers POST /containers/create with Config.TakeOver.
//
// If the default network cannot be had the container is Docker's, as without
// the shim: that publishes the ports as well, only slower, and a host without
// Portolan goes on working. Whoever has asked is told so in the response's
// warnings, which the docker command prints.
func (s *Shim) createContainer(w http.ResponseWriter, r *http.Request) {
	d, root, ok := readBody(r)
	if !ok || !d.publishesOnBridge(root) {
		s.forward(w, r, nil)
		return
	}
	if err := s.haveDefaultNetwork(r.Context()); err != nil {
		s.cfg.Log.Warn("a container stays on Docker's bridge", "err", err)
		s.forward(w, r, warn(http.StatusCreated, fmt.Sprintf("this container is on Docker's bridge, not on Portolan: %v", err)))
		return
	}
	replaceBody(r, d.apply(d.moveToDefault(root)))
	s.forward(w, r, nil)
}

// publishesOnBridge says whether a container publishes ports and names no
// network. Who names Docker's default network wants that one, and links are that
// network's alone.
func (d doc) publishesOnBridge(root span) bool {
	host, ok := d.get(root, "HostConfig")
	if !ok || !d.isSet(host, "PortBindings") && !d.isSet(host, "PublishAllPorts") {
		return false
	}
	mode, ok := d.member(host, "NetworkMode")
	if !ok || mode != "" && mode != "default" || d.isSet(host, "Links") || d.isSet(root, "NetworkDisabled") {
		return false
	}
	named, unnamed := 0, 0
	if all, ok := d.get(root, "NetworkingConfig", "EndpointsConfig"); ok {
		for key := range d.members(all) {
			switch name, _ := d.str(key); name {
			case defaultNetwork:
				return false
			case "default", "bridge":
				unnamed++
			default:
				named++
			}
		}
	}
	// Two would have the same name, and an engine that is given others alone
	// takes those.
	return unnamed == 1 || unnamed == 0 && named == 0
}

// moveToDefault are the edits that put such a container on the default network,
// with the settings of its endpoint.
func (d doc) moveToDefault(root span) []edit {
	name, _ := json.Marshal(defaultNetwork) // a string
	host, _ := d.get(root, "HostConfig")
	edits := []edit{d.set(host, "NetworkMode", name)}
	if all, ok := d.get(root, "NetworkingConfig", "EndpointsConfig"); ok {
		for key := range d.members(all) {
			if text, _ := d.str(key); text == "default" || text == "bridge" {
				edits = append(edits, edit{key, name})
			}
		}
	}
	slices.SortFunc(edits, func(a, b edit) int { return a.from - b.from })
	return edits
}

// haveDefaultNetwork makes the default network unless it is there.
func (s *Shim) haveDefaultNetwork(ctx context.Context) error {
	select {
	case s.making <- struct{}{}:
		defer func() { <-s.making }()
	case <-ctx.Done():
		return ctx.Err()
	}
	driver, err := s.driver(ctx)
	if err != nil {
		return err
	}
	err = s.checkDefaultNetwork(ctx, driver)
	if !errors.Is(err, errNotFound) {
		return err
	}
	err = s.engine.call(ctx, http.MethodPost, "/networks/create", map[string]any{
		"Name":           defaultNetwork,
		"CheckDuplicate": true, // engines before 25 make a second one otherwise
		"Driver":         driver,
		"Labels":         map[string]string{defaultLabel: "true"},
	}, nil)
	if errors.Is(err, errConflict) { // somebody has made it meanwhile
		return s.checkDefaultNetwork(ctx, driver)
	}
	return err
}

// checkDefaultNetwork says what is wrong with the default network. The error
// wraps errNotFound where there is none.
func (s *Shim) checkDefaultNetwork(ctx context.Context, driver string) error {
	var n struct {
		Driver string
		Labels map[string]string
	}
	if err := s.engine.get(ctx, "/networks/"+defaultNetwork, &n); err != nil {
		return err
	}
	if _, ok := n.Labels[defaultLabel]; !ok {
		return fmt.Errorf("network %s has no label %s", defaultNetwork, defaultLabel)
	}
	if n.Driver != driver {
		return fmt.Errorf("network %s is of driver %s, not %s", defaultNetwork, n.Driver, driver)
	}
	return nil
}
