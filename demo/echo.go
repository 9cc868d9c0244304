package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
)

// echo answers on many ports. A datagram, or a line over TCP, is answered by
// "PORT CLIENT PAYLOAD" with the port on which it came and the client's
// address as seen here, then the -name where one is given; with -raw, by itself.
func echo(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("echo", flag.ContinueOnError)
	tcp := f.String("tcp", "", "TCP `ports`, as 80,7000-7010")
	udp := f.String("udp", "", "UDP `ports`, as 53,7000-7010")
	host := f.String("host", "", "`address` to listen on; all where it is empty")
	name := f.String("name", "", "put at the end of every answer")
	raw := f.Bool("raw", false, "answer what came, and nothing else")
	if err := f.Parse(args); err != nil {
		return err
	}
	tcpPorts, err := parsePorts(*tcp)
	if err != nil {
		return err
	}
	udpPorts, err := parsePorts(*udp)
	if err != nil {
		return err
	}
	if len(tcpPorts)+len(udpPorts) == 0 {
		return errors.New("no ports; give -tcp, -udp or both")
	}
	e := echoer{suffix: " " + *name, raw: *raw}
	if *name == "" {
		e.suffix = ""
	}
	for _, p := range tcpPorts {
		ln, err := net.Listen("tcp", net.JoinHostPort(*host, strconv.Itoa(p)))
		if err != nil {
			return err
		}
		go e.serveTCP(ln, p)
	}
	for _, p := range udpPorts {
		c, err := net.ListenPacket("udp", net.JoinHostPort(*host, strconv.Itoa(p)))
		if err != nil {
			return err
		}
		if err := enlarge(c); err != nil {
			return err
		}
		go e.serveUDP(c, p)
	}
	fmt.Fprintf(os.Stderr, "echo: %d tcp and %d udp ports\n", len(tcpPorts), len(udpPorts))
	<-ctx.Done()
	return nil
}

// echoer serves until the process ends, and its goroutines with it.
type echoer struct {
	suffix string
	raw    bool
}

func (e echoer) answer(port int, client net.Addr, payload string) []byte {
	return fmt.Appendf(nil, "%d %s %s%s", port, plain(client), payload, e.suffix)
}

func (e echoer) serveTCP(ln net.Listener, port int) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go e.serveConn(c, port)
	}
}

func (e echoer) serveConn(c net.Conn, port int) {
	defer c.Close()
	if e.raw {
		_, _ = io.Copy(c, c)
		return
	}
	for in := bufio.NewScanner(c); in.Scan(); {
		if _, err := c.Write(append(e.answer(port, c.RemoteAddr(), in.Text()), '\n')); err != nil {
			return
		}
	}
}

func (e echoer) serveUDP(c net.PacketConn, port int) {
	buf := make([]byte, 65535)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		answer := buf[:n]
		if !e.raw {
			answer = e.answer(port, from, string(answer))
		}
		// A client that is gone is no reason to stop serving the others.
		_, _ = c.WriteTo(answer, from)
	}
}

// socketBuffer has room for some ten thousand small datagrams, so that a program
// that gets no processor for a second loses none. The kernel gives less where
// net.core.rmem_max is less.
const socketBuffer = 4 << 20

// enlarge gives a UDP socket that much, and leaves others to the kernel, which
// lets TCP wait.
func enlarge(c any) error {
	if c, ok := c.(*net.UDPConn); ok {
		return c.SetReadBuffer(socketBuffer)
	}
	return nil
}

// plain is an address without the ::ffff: that a dual-stack socket gives it.
func plain(a net.Addr) string {
	switch a := a.(type) {
	case *net.TCPAddr:
		return net.JoinHostPort(a.IP.String(), strconv.Itoa(a.Port))
	case *net.UDPAddr:
		return net.JoinHostPort(a.IP.String(), strconv.Itoa(a.Port))
	}
	return a.String()
}

// parsePorts reads a list like 53,7000-7010. An empty list has no ports.
func parsePorts(list string) ([]int, error) {
	var ports []int
	for item := range strings.SplitSeq(list, ",") {
		if item == "" {
			continue
		}
		first, last, ok := strings.Cut(item, "-")
		if !ok {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("port list %q: %w", list, err)
		}
		b, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("port list %q: %w", list, err)
		}
		if b < a {
			return nil, fmt.Errorf("port list %q: %s ends before it begins", list, item)
		}
		for p := a; p <= b; p++ {
			ports = append(ports, int(p))
		}
	}
	return ports, nil
}
