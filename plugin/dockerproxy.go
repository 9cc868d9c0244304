package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/proxy"
)

// proxyName is the program's name as docker's proxy: a link to it.
const proxyName = "portolan-proxy"

// What the engine hands to its proxy (moby, cmd/docker-proxy).
const (
	statusFile = 3 // a pipe: "0\n" once it serves, or "1\n" and an error
	listenFile = 4 // with -use-listen-fd: the socket to serve
)

// proxyFlags are docker-proxy's: one port, or with -use-listen-fd a socket that
// the engine has bound to it.
type proxyFlags struct {
	proto                   string
	hostIP, containerIP     netip.Addr
	hostPort, containerPort uint
	useListenFD, version    bool
}

// runProxy is the whole of portolan-proxy but for its end: one published port of
// Docker's own networks, for "userland-proxy-path" in daemon.json. It returns
// the exit status.
func runProxy(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f, err := parseProxyFlags(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err == nil && f.version:
		fmt.Fprintf(stdout, "%s %s\n", proxyName, version)
		return 0
	}
	// Started by hand there is no pipe, and the number may be the runtime's.
	var status io.WriteCloser
	if isPipe(statusFile) {
		status = os.NewFile(statusFile, "status")
	}
	if err == nil && f.proto == "sctp" {
		err = execDockerProxy(args)
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, unix.SIGTERM)
	defer stop()
	var p proxy.Proxy
	if err == nil {
		p, err = f.serve(slog.New(slog.NewTextHandler(stderr, nil)))
	}
	if err != nil {
		if status != nil {
			fmt.Fprintf(status, "1\n%v", err)
			_ = status.Close()
		} else {
			fmt.Fprintf(stderr, "%s: %v\n", proxyName, err)
		}
		return 1
	}
	if status != nil {
		fmt.Fprint(status, "0\n")
		_ = status.Close()
	}
	<-ctx.Done()
	_ = p.Close() // the process ends
	return 0
}

func parseProxyFlags(args []string, stderr io.Writer) (f proxyFlags, err error) {
	set := flag.NewFlagSet(proxyName, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {
		fmt.Fprintf(stderr, "%s carries one published port in place of docker-proxy.\nIn daemon.json: \"userland-proxy-path\": \"/usr/local/bin/%[1]s\"\n\n", proxyName)
		set.SetOutput(stderr)
		set.PrintDefaults()
	}
	set.StringVar(&f.proto, "proto", "tcp", "tcp, udp, or sctp, which docker-proxy is asked to carry")
	set.TextVar(&f.hostIP, "host-ip", netip.IPv4Unspecified(), "address of this host")
	set.UintVar(&f.hostPort, "host-port", 0, "port of this host")
	set.TextVar(&f.containerIP, "container-ip", netip.Addr{}, "address of the container")
	set.UintVar(&f.containerPort, "container-port", 0, "port of the container")
	set.BoolVar(&f.useListenFD, "use-listen-fd", false, "serve the socket that is file 4")
	set.BoolVar(&f.version, "version", false, "print the version")
	set.BoolVar(&f.version, "v", false, "print the version")
	if err := set.Parse(args); err != nil || f.version {
		return f, err
	}
	switch {
	case set.NArg() > 0:
		return f, fmt.Errorf("unexpected argument %q", set.Arg(0))
	case f.proto != "tcp" && f.proto != "udp" && f.proto != "sctp":
		return f, fmt.Errorf("-proto %q: must be tcp, udp or sctp", f.proto)
	case strings.ContainsAny(f.hostIP.Zone(), "[]"):
		return f, fmt.Errorf("-host-ip %q: the zone is no interface", f.hostIP)
	case !f.containerIP.IsValid():
		return f, errors.New("-container-ip is missing")
	case f.containerPort == 0 || f.containerPort > 65535:
		return f, fmt.Errorf("-container-port %d: must be 1 to 65535", f.containerPort)
	case f.hostPort > 65535 || f.hostPort == 0 && !f.useListenFD:
		return f, fmt.Errorf("-host-port %d: must be 1 to 65535", f.hostPort)
	}
	return f, nil
}

// serve starts the proxy.
func (f proxyFlags) serve(log *slog.Logger) (proxy.Proxy, error) {
	to := netip.AddrPortFrom(f.containerIP, uint16(f.containerPort))
	backend := func(netip.AddrPort) (netip.AddrPort, bool) { return to, true }
	if f.proto == "udp" {
		conn, err := f.listenUDP()
		if err != nil {
			return nil, err
		}
		return proxy.ServeUDP(conn, backend, proxy.UDPConfig{Log: log}), nil
	}
	ln, err := f.listenTCP()
	if err != nil {
		return nil, err
	}
	return proxy.ServeTCP(ln, backend, proxy.TCPConfig{Log: log}), nil
}

// local is where to listen, and the family, for package net.
func (f proxyFlags) local() (family, address string) {
	family = "4"
	if f.hostIP.Is6() && !f.hostIP.Is4In6() {
		family = "6" // package net then takes no IPv4
	}
	return family, net.JoinHostPort(f.hostIP.Unmap().String(), strconv.FormatUint(uint64(f.hostPort), 10))
}

func (f proxyFlags) listenTCP() (*net.TCPListener, error) {
	if f.useListenFD {
		file := os.NewFile(listenFile, "socket")
		defer file.Close()
		ln, err := net.FileListener(file)
		if err != nil {
			return nil, fmt.Errorf("-use-listen-fd: file %d: %w", listenFile, err)
		}
		tcp, ok := ln.(*net.TCPListener)
		if !ok {
			_ = ln.Close()
			return nil, fmt.Errorf("-use-listen-fd: file %d is a %s socket, not a tcp one", listenFile, ln.Addr().Network())
		}
		return tcp, nil
	}
	family, address := f.local()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // splice wants plain TCP
	ln, err := lc.Listen(context.Background(), "tcp"+family, address)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

func (f proxyFlags) listenUDP() (*net.UDPConn, error) {
	if f.useListenFD {
		file := os.NewFile(listenFile, "socket")
		defer file.Close()
		conn, err := net.FilePacketConn(file)
		if err != nil {
			return nil, fmt.Errorf("-use-listen-fd: file %d: %w", listenFile, err)
		}
		udp, ok := conn.(*net.UDPConn)
		if !ok {
			_ = conn.Close()
			return nil, fmt.Errorf("-use-listen-fd: file %d is a %s socket, not a udp one", listenFile, conn.LocalAddr().Network())
		}
		return udp, nil
	}
	family, address := f.local()
	conn, err := net.ListenPacket("udp"+family, address)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

func isPipe(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

// execDockerProxy makes docker-proxy of this process, files and all: package
// proxy has no SCTP. It returns only where that fails.
func execDockerProxy(args []string) error {
	path, err := exec.LookPath("docker-proxy")
	if err == nil {
		err = unix.Exec(path, append([]string{path}, args...), os.Environ())
	}
	return fmt.Errorf("sctp is carried by docker-proxy: %w", err)
}
