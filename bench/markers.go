package main

import (
	"bytes"
	"fmt"
	"os"
)

// markers are the lines of a Markdown file between which everything comes from
// one part of this program.
func markers(part string) (begin, end string) {
	return "<!-- bench " + part + ": begin -->\n", "<!-- bench " + part + ": end -->\n"
}

// replaceBetween is the file with text between a part's markers. It does not
// write.
func replaceBetween(path, part, text string) ([]byte, error) {
	markerBegin, markerEnd := markers(part)
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
