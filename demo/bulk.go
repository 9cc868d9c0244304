package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bulk sends size random bytes to an echo -raw, as one datagram or in one
// connection, and says that they came back unchanged.
func (s sender) bulk(ctx context.Context, size int) error {
	c, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if s.noFragments {
		if err := forbidFragments(c.Conn); err != nil {
			return err
		}
	}
	if err := c.SetDeadline(time.Now().Add(s.timeout)); err != nil {
		return err
	}
	sent := make([]byte, size)
	_, _ = rand.Read(sent)
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		written <- err
	}()
	if s.network == "udp" { // an error of the send says more than that no answer came
		if err := <-written; err != nil {
			return err
		}
		written <- nil
	}
	came := make([]byte, size+1)
	var n int
	if s.network == "udp" {
		n, err = c.Conn.Read(came)
	} else {
		n, err = io.ReadFull(c.Conn, came[:size])
	}
	if err := errors.Join(err, <-written); err != nil {
		return err
	}
	if !bytes.Equal(came[:n], sent) {
		return fmt.Errorf("sent %d bytes, and %d others came back", size, n)
	}
	fmt.Printf("%d bytes came back\n", n)
	return nil
}

// forbidFragments has packets that are too long for the path refused, there and
// here, instead of cut.
func forbidFragments(c net.Conn) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		if set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO); set != nil {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}
	})
	return errors.Join(err, set)
}
