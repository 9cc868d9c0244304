package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"time"
)

// stream goes on sending numbers to an echo -raw, from one socket, until it is
// told to end, and says that every one of them came back, once and in order. One
// that did not come back within -timeout is an error: a datagram is not sent
// again, and neither is a byte of TCP, whose own retries have that long.
func stream(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("stream", flag.ContinueOnError)
	length := f.Duration("for", time.Hour, "end after so long; SIGINT and SIGTERM end it too")
	every := f.Duration("every", 5*time.Millisecond, "time between messages")
	timeout := f.Duration("timeout", 5*time.Second, "how long an answer may take")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 2 || f.Arg(0) != "tcp" && f.Arg(0) != "udp" {
		return errors.New("want tcp|udp ADDR")
	}
	ctx, cancel := context.WithTimeout(ctx, *length)
	defer cancel()
	c, err := net.DialTimeout(f.Arg(0), f.Arg(1), *timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := enlarge(c); err != nil {
		return err
	}
	s := numbers{Conn: c, every: *every, timeout: *timeout, size: 8}
	if f.Arg(0) == "tcp" {
		s.size = 4096 // several segments are under way at any time
	}
	n, err := s.run(ctx)
	if err != nil {
		return fmt.Errorf("after %d messages: %w", n, err)
	}
	fmt.Printf("%d messages, %d bytes came back\n", n, n*uint64(s.size))
	return nil
}

// numbers is a connection on which messages of a size go out, each made of its
// number.
type numbers struct {
	net.Conn
	every, timeout time.Duration
	size           int
}

// run sends until ctx ends and returns how many messages came back.
func (s numbers) run(ctx context.Context) (came uint64, err error) {
	sent := make(chan uint64, 1<<16) // those on their way
	failed := make(chan error, 1)
	go s.send(ctx, sent, failed)
	buf := make([]byte, s.size+1)
	for want := range sent {
		if err := s.SetReadDeadline(time.Now().Add(s.timeout)); err != nil {
			return came, err
		}
		n, err := s.receive(buf)
		if err != nil {
			return came, err
		}
		if n != s.size {
			return came, fmt.Errorf("%d bytes came back instead of %d", n, s.size)
		}
		for i := 0; i < s.size; i += 8 {
			if got := binary.BigEndian.Uint64(buf[i:]); got != want {
				return came, fmt.Errorf("message %d came back instead of %d", got, want)
			}
		}
		came++
	}
	return came, <-failed
}

func (s numbers) receive(buf []byte) (int, error) {
	if _, ok := s.Conn.(*net.UDPConn); ok {
		return s.Read(buf)
	}
	return io.ReadFull(s.Conn, buf[:s.size])
}

// send ends when ctx does, or after an error.
func (s numbers) send(ctx context.Context, sent chan<- uint64, failed chan<- error) {
	defer close(sent)
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	msg := make([]byte, s.size)
	for n := uint64(0); ; n++ {
		for i := 0; i < s.size; i += 8 {
			binary.BigEndian.PutUint64(msg[i:], n)
		}
		if _, err := s.Write(msg); err != nil {
			failed <- err
			return
		}
		sent <- n
		select {
		case <-ctx.Done():
			failed <- nil
			return
		case <-tick.C:
		}
	}
}
