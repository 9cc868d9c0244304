package main

import (
	"bytes"
	"fmt"
	"os"
)

// Between these lines of a Markdown file everything comes from this program.
const (
	markerBegin = "<!-- bench: begin -->\n"
	markerEnd   = "<!-- bench: end -->\n"
)

// replaceBetween is the file with text between its markers. It does not write.
func replaceBetween(path, text string) ([]byte, error) {
	whole, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	before, rest, found := bytes.Cut(whole, []byte(markerBegin))
	if !found {
		return nil, fmt.Errorf("%s has no line %q", path, markerBegin)
	}
	_, after, found := bytes.Cut(rest, []byte(markerEnd))
	if !found {
		return nil, fmt.Errorf("%s has no line %q after the first marker", path, markerEnd)
	}
	return fmt.Appendf(nil, "%s%s%s%s%s", before, markerBegin, text, markerEnd, after), nil
}
