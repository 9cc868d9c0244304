package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const zone = "portolan.test."

// Every name of the zone has these addresses (RFC 5737 and RFC 3849 keep them
// for examples).
var (
	zone4 = netip.MustParseAddr("192.0.2.53")
	zone6 = netip.MustParseAddr("2001:db8::53")
)

// dns serves the zone over UDP and TCP. whoami.portolan.test has a TXT record
// with the client's address as seen here.
func dns(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("dns", flag.ContinueOnError)
	listen := f.String("listen", ":53", "`address` to listen on, UDP and TCP")
	if err := f.Parse(args); err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp", *listen)
	if err != nil {
		return err
	}
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		return err
	}
	go serveDNSDatagrams(udp)
	go serveDNSStreams(tcp)
	fmt.Fprintf(os.Stderr, "dns: on %s\n", udp.LocalAddr())
	<-ctx.Done()
	return nil
}

func serveDNSDatagrams(c net.PacketConn) {
	buf := make([]byte, 65535)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		if reply, err := answerDNS(buf[:n], from); err == nil {
			_, _ = c.WriteTo(reply, from) // it will ask again
		}
	}
}

func serveDNSStreams(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go serveDNSConn(c)
	}
}

func serveDNSConn(c net.Conn) {
	defer c.Close()
	for {
		msg, err := readDNS(c)
		if err != nil {
			return
		}
		reply, err := answerDNS(msg, c.RemoteAddr())
		if err != nil {
			return
		}
		if err := writeDNS(c, reply); err != nil {
			return
		}
	}
}

// readDNS and writeDNS are the two-byte length framing of RFC 1035, 4.2.2.
func readDNS(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeDNS(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

// answerDNS makes the reply to one request. The error says that it is none.
func answerDNS(request []byte, client net.Addr) ([]byte, error) {
	var p dnsmessage.Parser
	header, err := p.Start(request)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	reply := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: header.ID, Response: true, Authoritative: true,
			OpCode: header.OpCode, RecursionDesired: header.RecursionDesired,
		},
		Questions: []dnsmessage.Question{q},
	}
	name := strings.ToLower(q.Name.String())
	var body dnsmessage.ResourceBody
	switch {
	case name != zone && !strings.HasSuffix(name, "."+zone):
		reply.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		body = &dnsmessage.AResource{A: zone4.As4()}
	case q.Type == dnsmessage.TypeAAAA:
		body = &dnsmessage.AAAAResource{AAAA: zone6.As16()}
	case q.Type == dnsmessage.TypeTXT && name == "whoami."+zone:
		body = &dnsmessage.TXTResource{TXT: []string{plain(client)}}
	}
	if body != nil {
		h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
		reply.Answers = []dnsmessage.Resource{{Header: h, Body: body}}
	}
	return reply.Pack()
}

var queryTypes = map[string]dnsmessage.Type{
	"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "TXT": dnsmessage.TypeTXT,
}

// query asks one question and prints an answer a line.
func query(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("query", flag.ContinueOnError)
	tcp := f.Bool("tcp", false, "ask over TCP")
	timeout := f.Duration("timeout", 2*time.Second, "how long to wait for the answer")
	if err := f.Parse(args); err != nil {
		return err
	}
	server, name, kind := f.Arg(0), f.Arg(1), "A"
	if f.NArg() == 3 {
		kind = strings.ToUpper(f.Arg(2))
	}
	if f.NArg() < 2 || f.NArg() > 3 || queryTypes[kind] == 0 {
		return fmt.Errorf("want SERVER NAME [A|AAAA|TXT]")
	}
	if _, _, err := net.SplitHostPort(server); err != nil {
		server = net.JoinHostPort(strings.Trim(server, "[]"), "53")
	}
	network := "udp"
	if *tcp {
		network = "tcp"
	}
	answers, err := lookup(ctx, network, server, name, queryTypes[kind], *timeout)
	for _, a := range answers {
		fmt.Println(a)
	}
	return err
}

func lookup(ctx context.Context, network, server, name string, kind dnsmessage.Type, timeout time.Duration) ([]string, error) {
	qname, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil {
		return nil, err
	}
	request := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(os.Getpid()), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: qname, Type: kind, Class: dnsmessage.ClassINET}},
	}
	packed, err := request.Pack()
	if err != nil {
		return nil, err
	}
	reply, err := exchange(ctx, network, server, packed, timeout)
	if err != nil {
		return nil, err
	}
	var m dnsmessage.Message
	if err := m.Unpack(reply); err != nil {
		return nil, err
	}
	if m.RCode != dnsmessage.RCodeSuccess {
		return nil, fmt.Errorf("%s: %s", name, strings.TrimPrefix(m.RCode.String(), "RCode"))
	}
	var answers []string
	for _, a := range m.Answers {
		switch b := a.Body.(type) {
		case *dnsmessage.AResource:
			answers = append(answers, netip.AddrFrom4(b.A).String())
		case *dnsmessage.AAAAResource:
			answers = append(answers, netip.AddrFrom16(b.AAAA).String())
		case *dnsmessage.TXTResource:
			answers = append(answers, b.TXT...)
		}
	}
	if len(answers) == 0 {
		return nil, fmt.Errorf("%s: no such record", name)
	}
	return answers, nil
}

func exchange(ctx context.Context, network, server string, request []byte, timeout time.Duration) ([]byte, error) {
	d := net.Dialer{Timeout: timeout}
	c, err := d.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	if network == "tcp" {
		if err := writeDNS(c, request); err != nil {
			return nil, err
		}
		return readDNS(c)
	}
	if _, err := c.Write(request); err != nil {
		return nil, err
	}
	buf := make([]byte, 65535)
	n, err := c.Read(buf)
	return buf[:n], err
}
