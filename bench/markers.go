package main

import (
	"bytes"
	"fmt"
	"os"
)

// markers are the lines of a Markdown file between which everything comes from
// this program: from all of it, or from one section.
func markers(only string) (begin, end string) {
	if only != "" {
		only = " " + only
	}
	return "<!-- bench" + only + ": begin -->\n", "<!-- bench" + only + ": end -->\n"
}

// replaceBetween is the file with text between a section's markers. It does not
// write.
func replaceBetween(path, only, text string) ([]byte, error) {
	markerBegin, markerEnd := markers(only)
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
