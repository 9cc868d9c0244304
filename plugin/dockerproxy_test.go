package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// dockerProxy is this test binary under its other name, as an engine starts it.
type dockerProxy struct {
	t      *testing.T
	cmd    *exec.Cmd
	status *os.File // what it says on file 3, to its end
	stderr strings.Builder
}

func startProxy(t *testing.T, listen *os.File, args ...string) *dockerProxy {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	status, said, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { status.Close() })
	p := &dockerProxy{t: t, cmd: exec.Command(program), status: status}
	p.cmd.Args = append([]string{"/usr/local/bin/" + proxyName}, args...)
	p.cmd.ExtraFiles = []*os.File{said}
	if listen != nil {
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, listen)
	}
	p.cmd.Stderr = &p.stderr
	require.NoError(t, p.cmd.Start())
	require.NoError(t, said.Close())
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	return p
}

// says reads the status to its end, as the engine does.
func (p *dockerProxy) says() string {
	p.t.Helper()
	require.NoError(p.t, p.status.SetReadDeadline(time.Now().Add(20*time.Second)))
	text, err := io.ReadAll(p.status)
	require.NoError(p.t, err)
	return string(text)
}

// echoServer answers with what it gets, on an address of this host's.
func echoServer(t *testing.T, network, host string) (port string) {
	t.Helper()
	if strings.HasPrefix(network, "tcp") {
		ln, err := net.Listen(network, net.JoinHostPort(host, "0"))
		require.NoError(t, err)
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
		return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	}
	conn, err := net.ListenPacket(network, net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buf[:n], from)
		}
	}()
	return strconv.Itoa(conn.LocalAddr().(*net.UDPAddr).Port)
}

// freePort is one that was free a moment ago; nobody else is in the namespace.
func freePort(t *testing.T, network, host string) string {
	t.Helper()
	if strings.HasPrefix(network, "tcp") {
		ln, err := net.Listen(network, net.JoinHostPort(host, "0"))
		require.NoError(t, err)
		defer ln.Close()
		return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	}
	conn, err := net.ListenPacket(network, net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	defer conn.Close()
	return strconv.Itoa(conn.LocalAddr().(*net.UDPAddr).Port)
}

func requireEchoes(t *testing.T, network, address string) {
	t.Helper()
	c, err := net.DialTimeout(network, address, 20*time.Second)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	buf := make([]byte, 5)
	_, err = io.ReadFull(c, buf)
	require.NoError(t, err)
	require.Equal(t, "hello", string(buf))
}

// An engine starts one for each port and family, says where by flags, waits for
// the status, and ends it by SIGTERM.
func TestDockerProxy(t *testing.T) {
	for _, tt := range []struct{ network, host, container string }{
		{"tcp4", "127.0.0.1", "127.0.0.1"},
		{"tcp4", "0.0.0.0", "::1"},
		{"tcp6", "::1", "127.0.0.1"},
		{"tcp6", "::", "::1"},
		{"udp4", "127.0.0.1", "127.0.0.1"},
		{"udp4", "0.0.0.0", "::1"},
		{"udp6", "::1", "127.0.0.1"},
		{"udp6", "::", "::1"},
	} {
		t.Run(tt.network+" on "+tt.host, func(t *testing.T) {
			proto := tt.network[:3]
			to := echoServer(t, proto, tt.container)
			port := freePort(t, tt.network, tt.host)
			p := startProxy(t, nil, "-proto", proto, "-host-ip", tt.host, "-host-port", port,
				"-container-ip", tt.container, "-container-port", to)
			require.Equal(t, "0\n", p.says(), p.stderr.String())
			at := tt.host
			if ip := net.ParseIP(at); ip.IsUnspecified() {
				at = map[string]string{"4": "127.0.0.1", "6": "::1"}[tt.network[3:]]
			}
			requireEchoes(t, proto, net.JoinHostPort(at, port))
			if proto == "tcp" { // the other family is another process's
				other, err := net.Listen("tcp"+map[string]string{"4": "6", "6": "4"}[tt.network[3:]], ":"+port)
				require.NoError(t, err)
				require.NoError(t, other.Close())
			}
			require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
			require.NoError(t, p.cmd.Wait())
			assert.Empty(t, p.stderr.String())
		})
	}
}

// Engines since 28 bind the socket themselves and hand it over as file 4.
func TestDockerProxyTakesASocket(t *testing.T) {
	t.Run("tcp", func(t *testing.T) {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		require.NoError(t, err)
		defer ln.Close()
		file, err := ln.(*net.TCPListener).File()
		require.NoError(t, err)
		defer file.Close()
		p := startProxy(t, file, "-proto", "tcp", "-host-ip", "127.0.0.1", "-host-port", "1",
			"-container-ip", "127.0.0.1", "-container-port", echoServer(t, "tcp", "127.0.0.1"), "-use-listen-fd")
		require.Equal(t, "0\n", p.says())
		requireEchoes(t, "tcp", ln.Addr().String())
	})
	t.Run("udp", func(t *testing.T) {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		require.NoError(t, err)
		defer conn.Close()
		file, err := conn.File()
		require.NoError(t, err)
		defer file.Close()
		p := startProxy(t, file, "-proto", "udp", "-host-ip", "127.0.0.1", "-host-port", "1",
			"-container-ip", "127.0.0.1", "-container-port", echoServer(t, "udp", "127.0.0.1"), "-use-listen-fd")
		require.Equal(t, "0\n", p.says())
		requireEchoes(t, "udp", conn.LocalAddr().String())
	})
	t.Run("of the wrong kind", func(t *testing.T) {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		require.NoError(t, err)
		defer ln.Close()
		file, err := ln.(*net.TCPListener).File()
		require.NoError(t, err)
		defer file.Close()
		p := startProxy(t, file, "-proto", "udp", "-container-ip", "127.0.0.1", "-container-port", "1", "-use-listen-fd")
		assert.Regexp(t, `^1\n-use-listen-fd: file 4: `, p.says())
	})
	t.Run("none", func(t *testing.T) {
		p := startProxy(t, nil, "-proto", "tcp", "-container-ip", "127.0.0.1", "-container-port", "1", "-use-listen-fd")
		assert.Regexp(t, `^1\n-use-listen-fd: file 4: `, p.says())
	})
}

// The engine shows the error to whoever typed docker run.
func TestDockerProxyErrors(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	taken := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	for _, tt := range []struct{ name, args, want string }{
		{"taken", "-host-ip 127.0.0.1 -host-port " + taken + " -container-ip 127.0.0.1 -container-port 1",
			"listen tcp4 127.0.0.1:" + taken + ": bind: address already in use"},
		{"an address of another host", "-proto udp -host-ip 192.0.2.1 -host-port 9999 -container-ip 127.0.0.1 -container-port 1",
			"listen udp4 192.0.2.1:9999: bind: cannot assign requested address"},
		{"no container", "-host-port 80 -container-port 80", "-container-ip is missing"},
		{"no port", "-container-ip 127.0.0.1 -container-port 80", "-host-port 0: must be 1 to 65535"},
		{"no container port", "-container-ip 127.0.0.1 -host-port 80", "-container-port 0: must be 1 to 65535"},
		{"a port out of range", "-container-ip 127.0.0.1 -container-port 80 -host-port 65536", "-host-port 65536: must be 1 to 65535"},
		{"another protocol", "-proto icmp -host-port 80 -container-ip 127.0.0.1 -container-port 80", `-proto "icmp": must be tcp, udp or sctp`},
		{"an argument", "-host-port 80 -container-ip 127.0.0.1 -container-port 80 extra", `unexpected argument "extra"`},
		{"an unknown flag", "-frob", "flag provided but not defined: -frob"},
		{"an address that is none", "-host-ip 1.2.3 -host-port 80", `invalid value "1.2.3" for flag -host-ip: ParseAddr("1.2.3"): IPv4 address too short`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startProxy(t, nil, strings.Fields(tt.args)...)
			assert.Equal(t, "1\n"+tt.want, p.says())
			assert.Error(t, p.cmd.Wait())
			assert.Equal(t, 1, p.cmd.ProcessState.ExitCode())
		})
	}
}

// By hand there is no pipe; the error is for the person.
func TestDockerProxyByHand(t *testing.T) {
	program, err := os.Executable()
	require.NoError(t, err)
	byHand := func(args ...string) (string, error) {
		cmd := exec.Command(program)
		cmd.Args = append([]string{proxyName}, args...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := byHand("-host-port", "80")
	require.Error(t, err)
	assert.Equal(t, "portolan-proxy: -container-ip is missing\n", out)
	out, err = byHand("-version")
	require.NoError(t, err)
	assert.Equal(t, "portolan-proxy dev\n", out)
	out, err = byHand("-h")
	require.NoError(t, err)
	assert.Contains(t, out, "in place of docker-proxy")
}

// SCTP is docker-proxy's, which gets the same arguments and files.
func TestDockerProxySCTP(t *testing.T) {
	args := []string{"-proto", "sctp", "-host-ip", "127.0.0.1", "-host-port", "80", "-container-ip", "127.0.0.1", "-container-port", "80"}
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	assert.Equal(t, "1\nsctp is carried by docker-proxy: exec: \"docker-proxy\": executable file not found in $PATH", startProxy(t, nil, args...).says())

	script := "#!/bin/sh\necho \"0 $*\" >&3\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docker-proxy"), []byte(script), 0o755))
	assert.Equal(t, fmt.Sprintln("0", strings.Join(args, " ")), startProxy(t, nil, args...).says())
}
