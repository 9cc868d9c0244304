package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// sender is the client of echo. Each message gets an answer of its own.
type sender struct {
	network, addr string
	bind          string
	broadcast     bool
	noFragments   bool
	timeout       time.Duration
}

// send sends one message and prints the answer, or, with -count or -until, goes
// on sending from one socket, answered or not, prints the answers, and at the
// end "sent N answered M".
func send(ctx context.Context, args []string) error {
	var s sender
	f := flag.NewFlagSet("send", flag.ContinueOnError)
	f.StringVar(&s.bind, "bind", "", "source `address`, with or without a port")
	f.BoolVar(&s.broadcast, "broadcast", false, "UDP: take an answer from any address, as a broadcast needs")
	f.DurationVar(&s.timeout, "timeout", 2*time.Second, "how long to wait for a connection or an answer")
	f.BoolVar(&s.noFragments, "df", false, "UDP with -size: do not fragment")
	size := f.Int("size", -1, "send that many random `bytes` to an echo -raw, which must come back")
	count := f.Int("count", 1, "how many messages")
	interval := f.Duration("interval", 100*time.Millisecond, "time between messages")
	until := f.String("until", "", "stop with success at the first answer that has this `text`")
	if err := f.Parse(args); err != nil {
		return err
	}
	payload := "hello"
	switch f.NArg() {
	case 3:
		payload = f.Arg(2)
	case 2:
	default:
		return errors.New("want tcp|udp ADDR [PAYLOAD]")
	}
	s.network, s.addr = f.Arg(0), f.Arg(1)
	if *size >= 0 {
		return s.bulk(ctx, *size)
	}
	c, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if *count == 1 && *until == "" {
		answer, err := c.ask(payload, s.timeout)
		if err != nil {
			return err
		}
		fmt.Println(answer)
		return nil
	}
	sent, answered := 0, 0
	for sent < *count && ctx.Err() == nil {
		sent++
		asked := time.Now()
		answer, err := c.ask(fmt.Sprintf("%s %d", payload, sent), *interval)
		if err == nil {
			answered++
			fmt.Println(answer)
			if *until != "" && strings.Contains(answer, *until) {
				fmt.Printf("sent %d answered %d\n", sent, answered)
				return nil
			}
		}
		if rest := *interval - time.Since(asked); rest > 0 {
			time.Sleep(rest)
		}
	}
	fmt.Printf("sent %d answered %d\n", sent, answered)
	if *until != "" {
		return fmt.Errorf("no answer had %q", *until)
	}
	return nil
}

// conversation is one socket over which messages go out and answers come in.
type conversation struct {
	net.Conn
	in   *bufio.Reader                            // TCP only
	read func(deadline time.Time) (string, error) // one answer
	out  func(payload string) error               // one message
}

func (s sender) open(ctx context.Context) (*conversation, error) {
	d := net.Dialer{Timeout: s.timeout}
	switch s.network {
	case "tcp":
		if s.bind != "" {
			a, err := net.ResolveTCPAddr("tcp", withPort(s.bind))
			if err != nil {
				return nil, err
			}
			d.LocalAddr = a
		}
		conn, err := d.DialContext(ctx, "tcp", s.addr)
		if err != nil {
			return nil, err
		}
		return newStream(conn), nil
	case "udp":
		var local *net.UDPAddr
		if s.bind != "" {
			a, err := net.ResolveUDPAddr("udp", withPort(s.bind))
			if err != nil {
				return nil, err
			}
			local, d.LocalAddr = a, a
		}
		if s.broadcast {
			return newBroadcast(local, s.addr)
		}
		conn, err := d.DialContext(ctx, "udp", s.addr)
		if err != nil {
			return nil, err
		}
		return newDatagrams(conn), nil
	}
	return nil, fmt.Errorf("unknown protocol %q; want tcp or udp", s.network)
}

// withPort gives an address without a port the port 0, which means any.
func withPort(addr string) string {
	if a, err := netip.ParseAddr(addr); err == nil {
		return netip.AddrPortFrom(a, 0).String()
	}
	return addr
}

func (c *conversation) ask(payload string, wait time.Duration) (string, error) {
	if err := c.out(payload); err != nil {
		return "", err
	}
	return c.read(time.Now().Add(wait))
}

func newStream(conn net.Conn) *conversation {
	c := &conversation{Conn: conn, in: bufio.NewReader(conn)}
	c.out = func(payload string) error {
		_, err := conn.Write([]byte(payload + "\n"))
		return err
	}
	c.read = func(deadline time.Time) (string, error) {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return "", err
		}
		line, err := c.in.ReadString('\n')
		return strings.TrimSuffix(line, "\n"), err
	}
	return c
}

// newDatagrams takes answers from the address it sends to and from no other.
func newDatagrams(conn net.Conn) *conversation {
	c := &conversation{Conn: conn}
	c.out = func(payload string) error {
		_, err := conn.Write([]byte(payload))
		return err
	}
	c.read = func(deadline time.Time) (string, error) {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return "", err
		}
		buf := make([]byte, 65535)
		n, err := conn.Read(buf)
		return string(buf[:n]), err
	}
	return c
}

func newBroadcast(local *net.UDPAddr, addr string) (*conversation, error) {
	to, err := net.ResolveUDPAddr("udp4", addr)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp4", local) // package net sets SO_BROADCAST
	if err != nil {
		return nil, err
	}
	c := newDatagrams(conn)
	c.out = func(payload string) error {
		_, err := conn.WriteTo([]byte(payload), to)
		return err
	}
	return c, nil
}
