package shim

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
)

// hijacks says whether the engine may make a raw connection of a request's. It
// does so for attach and exec with or without being asked for an upgrade, and
// from version 29 on for a client that begins with HTTP/2.
func hijacks(r *http.Request, path string) bool {
	if r.Method == "PRI" || r.Header.Get("Upgrade") != "" {
		return true
	}
	return r.Method == http.MethodPost && (between(path, "/containers/", "/attach") || between(path, "/exec/", "/start"))
}

// tunnel joins the client's connection to one of its own to the engine, from the
// request's first byte on. Nobody here needs to know what becomes of it, each
// direction ends by itself, and no byte is lost that a client sends too early.
// A ReverseProxy drops such bytes, and output that is on its way when writing
// input fails.
func (s *Shim) tunnel(w http.ResponseWriter, r *http.Request) {
	engine, err := s.engine.dial(r.Context())
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	defer engine.Close()
	client, early, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.refuse(w, r, fmt.Errorf("take over the client's connection: %w", err))
		return
	}
	defer client.Close()
	s.engineUp.note(nil)
	sent, _ := early.Reader.Peek(early.Reader.Buffered()) // what is there
	input := io.MultiReader(bytes.NewReader(requestHead(r)), bytes.NewReader(sent), client)
	var both sync.WaitGroup
	both.Go(func() { pass(engine, client, input) })
	pass(client, engine, engine)
	both.Wait()
}

// requestHead is a request without its body, which the server has not read. It
// asks the engine to close the connection after an ordinary answer: a further
// request on it would pass by the shim.
func requestHead(r *http.Request) []byte {
	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s %s\r\n", r.Method, r.RequestURI, r.Proto)
	if r.Method != "PRI" {
		header := r.Header.Clone()
		header.Set("Host", r.Host)
		header.Set("Connection", strings.Join(append(header["Connection"], "close"), ", "))
		if len(r.TransferEncoding) > 0 {
			header.Set("Transfer-Encoding", strings.Join(r.TransferEncoding, ", "))
		}
		_ = header.Write(&head) // a buffer
	}
	head.WriteString("\r\n")
	return head.Bytes()
}

// tunnelSize is the size in bytes of a tunnel's two buffers. Each attached
// client has them, and few send much.
const tunnelSize = 32 << 10

// halves are what unix and TCP connections have: an end for each direction.
type halves interface {
	CloseRead() error
	CloseWrite() error
}

// pass copies input, the end of which comes from src, to dst until it ends, and
// passes on how it has ended: with a half-close, or with all of the connection.
func pass(dst, src net.Conn, input io.Reader) {
	buf := make([]byte, tunnelSize)
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{input}, buf) // with no buffers of their own
	d, ok := dst.(halves)
	s, ok2 := src.(halves)
	if !ok || !ok2 {
		_, _ = dst.Close(), src.Close()
		return
	}
	if err != nil {
		// If dst takes no more, src is told so. What it has sent meanwhile is
		// read: closing with unread data loses what is on its way to src.
		_ = s.CloseRead()
		_, _ = io.Copy(io.Discard, src)
	}
	_ = d.CloseWrite()
	if gone(src) {
		_ = d.CloseRead() // ends the other direction
	}
}

// gone says whether the other side has closed all of a unix connection, not just
// its sending half: an empty write then fails with EPIPE. TCP cannot tell.
func gone(c net.Conn) bool {
	_, err := c.Write(nil)
	return err != nil
}
