package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/portolan/portolan/internal/enginetest"
)

const (
	image     = "portolan-demo"
	firstPort = 10000
)

// subject is what is measured: containers on one network of one driver.
type subject struct {
	name    string
	network string
	proxies bool // the engine starts processes for each port
	floor   bool
	engine  *enginetest.Engine
	daemon  *daemon // nil unless it is Portolan's
}

// lab is engines and all that runs beside them. There may be several, because a
// network namespace has one Portolan daemon, which has one mapper, and an engine
// runs proxies or none.
type lab struct {
	ctx      context.Context
	config   config
	log      func(format string, args ...any)
	subjects []*subject // by their places; nil where nobody asked for it
	runs     int        // containers so far
}

// The subjects' places in lab.subjects.
const (
	nftables = iota
	iptables
	floorPlugin
	builtin
	noProxy
	docker0
	places // how many there are
)

// newLab starts what the subjects at these places need.
func newLab(ctx context.Context, s *session, c config, wanted ...int) (*lab, error) {
	l := &lab{ctx: ctx, config: c, log: s.Logf, subjects: make([]*subject, places)}
	engines := map[int]*enginetest.Engine{}
	for _, place := range wanted {
		sub := newSubject(place)
		l.subjects[place] = sub
		key, flags := 0, []string(nil) // most share an engine
		switch place {
		case iptables:
			key = iptables
		case noProxy:
			key, flags = noProxy, []string{"--userland-proxy=false"}
		}
		if engines[key] == nil {
			e, err := l.startEngine(s, flags...)
			if err != nil {
				return nil, err
			}
			engines[key] = e
		}
		sub.engine = engines[key]
		if err := l.startDriver(s, sub, place); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func newSubject(place int) *subject {
	return [places]*subject{
		nftables:    {name: "Portolan, nftables", network: "portolan"},
		iptables:    {name: "Portolan, iptables", network: "portolan"},
		floorPlugin: {name: "floor", network: "floor", floor: true},
		builtin:     {name: "built-in bridge", network: "builtin", proxies: true},
		noProxy:     {name: "built-in bridge, no proxy", network: "builtin"},
		docker0:     {name: "built-in, default network", network: "bridge", proxies: true},
	}[place]
}

// startDriver starts what drives a subject's network, and makes that.
func (l *lab) startDriver(s *session, sub *subject, place int) error {
	var err error
	driver, e := "bridge", sub.engine
	switch place {
	case docker0:
		return nil // dockerd makes it
	case floorPlugin:
		driver = "floor"
		if err := l.startFloor(s, e); err != nil {
			return err
		}
	case nftables, iptables:
		mapper := map[int]string{nftables: "nftables", iptables: "iptables"}[place]
		if sub.daemon, err = l.config.startDaemon(s, e.Host, mapper, e.Dir, e.PluginDir()); err != nil {
			return err
		}
		driver = driverName
	}
	_, err = l.docker(e, "network", "create", "-d", driver, sub.network)
	return err
}

func (l *lab) startEngine(s *session, flags ...string) (*enginetest.Engine, error) {
	e := enginetest.New(s, enginetest.Options{Args: flags})
	// A session that ended before its time has no patience for the orderly end
	// of thousands of processes; those that the engine started die with it.
	s.Cleanup(func() {
		if l.ctx.Err() != nil || s.Failed() {
			_ = e.Kill()
		}
	})
	if err := l.ctx.Err(); err != nil {
		return nil, err
	}
	return e, e.Load(image, filepath.Join(l.config.bin, "demo"))
}

func (l *lab) startFloor(s *session, e *enginetest.Engine) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	socket := filepath.Join(e.PluginDir(), "floor.sock")
	p, err := enginetest.Start("floor", filepath.Join(e.Dir, "floor.log"), e.Command(self, "floor", socket))
	if err != nil {
		return err
	}
	s.Cleanup(func() {
		_ = p.Stop(syscall.SIGTERM, 5*time.Second)
		_ = os.Remove(socket)
	})
	return listening(p, socket)
}

// listening waits for a plugin to answer.
func listening(p *enginetest.Process, socket string) error {
	return enginetest.Poll(20*time.Second, func() error {
		c, err := net.Dial("unix", socket)
		if err == nil {
			return c.Close()
		}
		return fmt.Errorf("start %s: %w: %s", p.Name, err, p.Tail(5))
	})
}

// docker runs the docker client and returns what it printed.
func (l *lab) docker(e *enginetest.Engine, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(l.ctx, l.config.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "PATH="+enginetest.Path(), "DOCKER_HOST="+e.Address())
	// Ctrl-C is ours to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), errors.Join(err, ctx.Err()), stderr.String())
	}
	return strings.TrimSpace(out.String()), nil
}
