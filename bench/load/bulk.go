package load

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// chunk is how much bulk is written at a time, in bytes.
const chunk = 256 << 10

// bulk writes until the time is over and asks how much has arrived.
func bulk(s Spec) (r Result, err error) {
	conn, err := net.DialTimeout("tcp", s.To.String(), 5*time.Second)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	buf := make([]byte, chunk)
	began := time.Now()
	for time.Since(began) < s.For {
		if _, err := conn.Write(buf); err != nil {
			return r, fmt.Errorf("send to %s: %w", s.To, err)
		}
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return r, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return r, err
	}
	var total [8]byte
	if _, err := io.ReadFull(conn, total[:]); err != nil {
		return r, fmt.Errorf("hear from %s how much has arrived: %w", s.To, err)
	}
	r.Took, r.Bytes = time.Since(began), int64(binary.BigEndian.Uint64(total[:]))
	return r, nil
}

// sink answers bulk.
func sink(ln net.Listener) error {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, chunk))
			_ = binary.Write(conn, binary.BigEndian, uint64(n))
		}()
	}
}
