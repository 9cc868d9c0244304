package shim

import (
	"bytes"
	"encoding/json"
	"iter"
	"strings"
)

// doc is a JSON text that json.Valid has accepted, which the methods rely on. It
// is edited as text, so that whatever is not meant stays as it was written:
// order, unknown fields, numbers, escapes.
type doc []byte

// span is a part of a doc: text[from:to]. That of a value has no space around
// it.
type span struct{ from, to int }

// edit puts text in place of a span, which may be empty.
type edit struct {
	span
	text []byte
}

// parse says whether body is JSON, and where its value is.
func parse(body []byte) (d doc, root span, ok bool) {
	if !json.Valid(body) {
		return nil, span{}, false
	}
	d = doc(body)
	return d, d.value(0), true
}

// apply returns the text with edits, which do not overlap and are in order; nil
// where there are none.
func (d doc) apply(edits []edit) []byte {
	if len(edits) == 0 {
		return nil
	}
	size := len(d)
	for _, e := range edits {
		size += len(e.text)
	}
	out := make([]byte, 0, size)
	at := 0
	for _, e := range edits {
		out = append(append(out, d[at:e.from]...), e.text...)
		at = e.to
	}
	return append(out, d[at:]...)
}

func (d doc) text(s span) []byte { return d[s.from:s.to] }

// members are the keys, with their quotes, and the values of an object; none of
// anything else.
func (d doc) members(s span) iter.Seq2[span, span] {
	return func(yield func(key, value span) bool) {
		if d[s.from] != '{' {
			return
		}
		for i := d.space(s.from + 1); d[i] != '}'; {
			key := d.value(i)
			value := d.value(d.space(key.to) + 1) // after the colon
			if !yield(key, value) {
				return
			}
			i = d.next(value.to)
		}
	}
}

// elements are those of an array; none of anything else.
func (d doc) elements(s span) iter.Seq[span] {
	return func(yield func(span) bool) {
		if d[s.from] != '[' {
			return
		}
		for i := d.space(s.from + 1); d[i] != ']'; {
			e := d.value(i)
			if !yield(e) {
				return
			}
			i = d.next(e.to)
		}
	}
}

// get is the value at a path of keys, each compared as encoding/json does: in
// either case, and the last one counts.
func (d doc) get(s span, path ...string) (value span, ok bool) {
	value = s
	for _, name := range path {
		s, ok = value, false
		for k, v := range d.members(s) {
			if d.isKey(k, name) {
				value, ok = v, true
			}
		}
		if !ok {
			return span{}, false
		}
	}
	return value, true
}

func (d doc) isKey(key span, name string) bool {
	raw := d[key.from+1 : key.to-1]
	if bytes.IndexByte(raw, '\\') < 0 {
		return bytes.EqualFold(raw, []byte(name))
	}
	text, _ := d.str(key)
	return strings.EqualFold(text, name)
}

// str decodes a string; ok is false for anything else.
func (d doc) str(s span) (text string, ok bool) {
	raw := d.text(s)
	if raw[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), true
	}
	return text, json.Unmarshal(raw, &text) == nil
}

// set is an edit that gives an object's member a value.
func (d doc) set(object span, name string, value []byte) edit {
	if old, ok := d.get(object, name); ok {
		return edit{old, value}
	}
	key, _ := json.Marshal(name) // a string
	text := append(append(key, ':'), value...)
	if d[d.space(object.from+1)] != '}' {
		text = append(text, ',')
	}
	return edit{span{object.from + 1, object.from + 1}, text}
}

// value is the value that begins at i or after space there.
func (d doc) value(i int) span {
	i = d.space(i)
	s := span{i, i + 1}
	switch d[i] {
	case '"':
		s.to = d.endOfString(i)
	case '{', '[':
		for depth := 1; depth > 0; {
			switch d[s.to] {
			case '"':
				s.to = d.endOfString(s.to)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			s.to++
		}
	default:
		for s.to < len(d) && strings.IndexByte(",]} \t\r\n", d[s.to]) < 0 {
			s.to++
		}
	}
	return s
}

// endOfString is behind the closing quote of the string that begins at i.
func (d doc) endOfString(i int) int {
	for i++; ; i += 2 { // from behind an escape to behind the next
		end := i + bytes.IndexByte(d[i:], '"')
		escape := bytes.IndexByte(d[i:end], '\\')
		if escape < 0 {
			return end + 1
		}
		i += escape
	}
}

// next is the start of what follows a value: another one, or the bracket.
func (d doc) next(i int) int {
	if i = d.space(i); d[i] == ',' {
		i = d.space(i + 1)
	}
	return i
}

func (d doc) space(i int) int {
	for i < len(d) && (d[i] == ' ' || d[i] == '\n' || d[i] == '\t' || d[i] == '\r') {
		i++
	}
	return i
}
