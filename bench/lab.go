package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
	pluginDir = "/run/docker/plugins" // of every engine, private or not
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

// lab is the engines and all that runs beside them. There are two, because a
// network namespace has one Portolan daemon, which has one mapper.
type lab struct {
	ctx      context.Context
	config   config
	log      func(format string, args ...any)
	subjects []*subject
	version  string // of the engine
	runs     int    // containers so far
}

// The subjects' places in lab.subjects.
const (
	nftables = iota
	iptables
	floorPlugin
	builtin
	docker0
)

func newLab(ctx context.Context, s *session, c config) (*lab, error) {
	l := &lab{ctx: ctx, config: c, log: s.Logf}
	first, err := l.startEngine(s)
	if err != nil {
		return nil, err
	}
	second, err := l.startEngine(s)
	if err != nil {
		return nil, err
	}
	l.subjects = []*subject{
		nftables:    {name: "Portolan, nftables", network: "portolan", engine: first},
		iptables:    {name: "Portolan, iptables", network: "portolan", engine: second},
		floorPlugin: {name: "floor", network: "floor", engine: first, floor: true},
		builtin:     {name: "built-in bridge", network: "builtin", engine: first, proxies: true},
		docker0:     {name: "built-in, default network", network: "bridge", engine: first, proxies: true},
	}
	if l.version, err = l.docker(first, "version", "--format", "{{.Server.Version}}"); err != nil {
		return nil, err
	}
	for i, mapper := range map[int]string{nftables: "nftables", iptables: "iptables"} {
		sub := l.subjects[i]
		if sub.daemon, err = l.startDaemon(s, sub.engine, mapper); err != nil {
			return nil, err
		}
		if _, err := l.docker(sub.engine, "network", "create", "-d", sub.daemon.driver, sub.network); err != nil {
			return nil, err
		}
	}
	driver, err := l.startFloor(s, first)
	if err != nil {
		return nil, err
	}
	if _, err := l.docker(first, "network", "create", "-d", driver, "floor"); err != nil {
		return nil, err
	}
	_, err = l.docker(first, "network", "create", "-d", "bridge", "builtin")
	return l, err
}

func (l *lab) startEngine(s *session) (*enginetest.Engine, error) {
	e := enginetest.New(s, enginetest.Options{})
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

// socketFor is a name that no other engine's plugin has.
func socketFor(what string) (driver, socket string) {
	driver = fmt.Sprintf("bench-%s-%06x", what, rand.IntN(1<<24))
	return driver, filepath.Join(pluginDir, driver+".sock")
}

func (l *lab) startFloor(s *session, e *enginetest.Engine) (driver string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	driver, socket := socketFor("floor")
	p, err := enginetest.Start("floor", filepath.Join(e.Dir, "floor.log"), e.Command(self, "floor", socket))
	if err != nil {
		return "", err
	}
	s.Cleanup(func() {
		_ = p.Stop(syscall.SIGTERM, 5*time.Second)
		_ = os.Remove(socket)
	})
	return driver, listening(p, socket)
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
