package shim

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"strconv"
)

// maxResponse is the longest response in bytes that is rewritten. An engine with
// ten thousand containers lists them in a quarter of it.
const maxResponse = 64 << 20

// rewrite says what happens to a response on its way to the client.
type rewrite struct {
	// status is that of a response that is edited.
	status int
	// edit returns what takes the place of a body, or nil to leave it.
	edit func(body []byte) []byte
	// otherwise, if not nil, is called in place of sending a response of that
	// status that was left as it is.
	otherwise func()
}

// apply edits a response. Whatever is not JSON, is compressed, is too long or
// breaks off is left as it is: done is false.
func (rw *rewrite) apply(resp *http.Response) (done bool) {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind != "application/json" || resp.Header.Get("Content-Encoding") != "" || resp.ContentLength > maxResponse {
		return false
	}
	var body bytes.Buffer
	n, err := io.Copy(&body, io.LimitReader(resp.Body, maxResponse+1))
	rest := resp.Body // which fails again where it has failed
	resp.Body = readCloser{io.MultiReader(&body, rest), rest}
	if err != nil || n > maxResponse {
		return false
	}
	edited := rw.edit(body.Bytes())
	if edited == nil {
		return false
	}
	resp.Body = readCloser{bytes.NewReader(edited), rest}
	resp.ContentLength = int64(len(edited))
	resp.Header.Set("Content-Length", strconv.Itoa(len(edited)))
	return true
}

// readCloser reads from one place and closes another.
type readCloser struct {
	io.Reader
	io.Closer
}

// warn is a rewrite that adds a line to the Warnings of a response of a status.
func warn(status int, line string) *rewrite {
	return &rewrite{status: status, edit: func(body []byte) []byte {
		d, root, ok := parse(body)
		if !ok || d[root.from] != '{' {
			return nil
		}
		text, err := json.Marshal(line)
		if err != nil {
			return nil
		}
		if list, ok := d.get(root, "Warnings"); ok && d[list.from] == '[' {
			end := span{list.to - 1, list.to - 1}
			if d[d.space(list.from+1)] != ']' {
				text = append([]byte{','}, text...)
			}
			return d.apply([]edit{{end, text}})
		}
		return d.apply([]edit{d.set(root, "Warnings", []byte("["+string(text)+"]"))})
	}}
}
