package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/portolan/portolan/bench/load"
	"github.com/portolan/portolan/internal/enginetest"
)

// peerPort is the first of a proxy's ports on 127.0.0.1; SinkPort's is the one
// after it, as in the container.
type peerPort uint16

const (
	dockerProxyPort peerPort = 7400 + 100*iota
	ourProxyPort
	nginxPort
	haproxyPort
	socatPort
	newerPort
)

// peer is a proxy program of this bench's, which stands alone between 127.0.0.1
// and a container's address.
type peer struct {
	name    string
	port    peerPort
	noUDP   bool
	noCPU   bool // a process for each client, which is gone before it could be asked
	start   func(e *enginetest.Engine, to netip.Addr) ([]*exec.Cmd, error)
	program string
}

// ourProxy is the daemon's proxy as a program.
const ourProxy = "portolan-proxy"

// newerProxy is docker-proxy of engine 29, where the environment has its path as
// DOCKER_PROXY_29.
const newerProxy = "docker-proxy of engine 29"

func peers(bin string) []peer {
	all := []peer{
		{name: "docker-proxy", port: dockerProxyPort, program: "docker-proxy", start: asDockerProxy("docker-proxy", dockerProxyPort)},
		{name: ourProxy, port: ourProxyPort, program: filepath.Join(bin, "portolan-proxy"), start: asDockerProxy(filepath.Join(bin, "portolan-proxy"), ourProxyPort)},
		{name: "nginx stream", port: nginxPort, program: "nginx", start: nginx},
		{name: "HAProxy", port: haproxyPort, program: "haproxy", noUDP: true, start: haproxy},
		{name: "socat", port: socatPort, program: "socat", noCPU: true, start: socat},
	}
	if program := os.Getenv("DOCKER_PROXY_29"); program != "" {
		all = append(all, peer{name: newerProxy, port: newerPort, program: program, start: asDockerProxy(program, newerPort)})
	}
	return all
}

// asDockerProxy is a process for each port, as an engine starts them.
func asDockerProxy(program string, port peerPort) func(*enginetest.Engine, netip.Addr) ([]*exec.Cmd, error) {
	return func(e *enginetest.Engine, to netip.Addr) (cmds []*exec.Cmd, err error) {
		status, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // file 3, which docker-proxy writes to and closes
		if err != nil {
			return nil, err
		}
		for _, p := range []struct {
			proto    string
			from, to int
		}{{"udp", int(port), load.UDPPort}, {"tcp", int(port), load.TCPPort}, {"tcp", int(port) + 1, load.SinkPort}} {
			cmd := e.Command(program, "-proto", p.proto, "-host-ip", "127.0.0.1", "-host-port", strconv.Itoa(p.from),
				"-container-ip", to.String(), "-container-port", strconv.Itoa(p.to))
			cmd.ExtraFiles = []*os.File{status}
			cmds = append(cmds, cmd)
		}
		return cmds, nil
	}
}

func nginx(e *enginetest.Engine, to netip.Addr) ([]*exec.Cmd, error) {
	config := filepath.Join(e.Dir, "nginx.conf")
	text := fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
worker_processes 2;
user root;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 4000; }
stream {
	proxy_half_close on;
	server { listen 127.0.0.1:%[2]d udp reuseport; proxy_pass %[4]s:%[5]d; }
	server { listen 127.0.0.1:%[2]d reuseport; proxy_pass %[4]s:%[6]d; }
	server { listen 127.0.0.1:%[3]d reuseport; proxy_pass %[4]s:%[7]d; }
}
`, e.Dir, nginxPort, nginxPort+1, to, load.UDPPort, load.TCPPort, load.SinkPort)
	return []*exec.Cmd{e.Command("nginx", "-p", e.Dir, "-c", config)}, os.WriteFile(config, []byte(text), 0o644)
}

func haproxy(e *enginetest.Engine, to netip.Addr) ([]*exec.Cmd, error) {
	config := filepath.Join(e.Dir, "haproxy.cfg")
	// More connections than files: it would not start.
	text := fmt.Sprintf(`global
	maxconn 3000
	nbthread 2
defaults
	mode tcp
	timeout connect 5s
	timeout client 60s
	timeout server 60s
listen echo
	bind 127.0.0.1:%d
	server c %s:%d
listen sink
	bind 127.0.0.1:%d
	server c %[2]s:%[5]d
`, haproxyPort, to, load.TCPPort, haproxyPort+1, load.SinkPort)
	return []*exec.Cmd{e.Command("haproxy", "-db", "-f", config)}, os.WriteFile(config, []byte(text), 0o644)
}

func socat(e *enginetest.Engine, to netip.Addr) (cmds []*exec.Cmd, err error) {
	for _, p := range []struct {
		listen, connect string
		from, to        int
	}{
		{"UDP4-LISTEN", "UDP4", int(socatPort), load.UDPPort},
		{"TCP4-LISTEN", "TCP4", int(socatPort), load.TCPPort},
		{"TCP4-LISTEN", "TCP4", int(socatPort) + 1, load.SinkPort},
	} {
		cmds = append(cmds, e.Command("socat", "-t", "10", fmt.Sprintf("%s:%d,bind=127.0.0.1,fork,reuseaddr", p.listen, p.from),
			fmt.Sprintf("%s:%s:%d", p.connect, to, p.to)))
	}
	return cmds, nil
}

// startPeer starts a peer's processes, which end with the session.
func (l *lab) startPeer(s *session, e *enginetest.Engine, p peer, to netip.Addr) (pids []int, err error) {
	cmds, err := p.start(e, to)
	if err != nil {
		return nil, err
	}
	for i, cmd := range cmds {
		name := fmt.Sprintf("%s-%d", filepath.Base(p.program), i)
		process, err := enginetest.Start(name, filepath.Join(e.Dir, name+".log"), cmd)
		if err != nil {
			return nil, err
		}
		s.Cleanup(func() { _ = process.Stop(syscall.SIGTERM, 5*time.Second) })
		pids = append(pids, process.PID())
	}
	return pids, nil
}
