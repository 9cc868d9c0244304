package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// state is all records. It is never changed once others can see it: a change
// makes another state, which shares with this one whatever stayed the same. So
// a change that cannot be written is undone by forgetting it.
type state struct {
	networks  table[Network]
	endpoints table[Endpoint]
	sysctls   []Sysctl // in the order they were put
}

// record is what a table holds.
type record[T any] interface {
	key() string
	clone() T
}

// entry is one record and the bytes that stand for it in the file, kept so
// that a write need not encode the records that did not change.
type entry[T record[T]] struct {
	value T
	raw   []byte
}

// newEntry encodes v, and takes the value from the encoding: it shares nothing
// with v, and what cannot be read back is an error now, not after a restart.
func newEntry[T record[T]](v T) (*entry[T], error) {
	raw, err := marshal(v)
	if err != nil {
		return nil, err
	}
	e := &entry[T]{raw: raw}
	if err := json.Unmarshal(raw, &e.value); err != nil {
		return nil, fmt.Errorf("read back: %w", err)
	}
	switch got := e.value.key(); {
	case got == "":
		return nil, errors.New("no ID")
	case got != v.key():
		return nil, fmt.Errorf("ID %q is not UTF-8", v.key())
	}
	return e, nil
}

// marshal is json.Marshal, but leaves <, > and & as they are: this is for files,
// not for web pages.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// table is records by ascending ID. Its methods leave it as it is.
type table[T record[T]] []*entry[T]

func (t table[T]) find(id string) (int, bool) {
	return slices.BinarySearchFunc(t, id, func(e *entry[T], id string) int {
		return strings.Compare(e.value.key(), id)
	})
}

// get returns a copy of the record id.
func (t table[T]) get(id string) (T, bool) {
	i, ok := t.find(id)
	if !ok {
		var none T
		return none, false
	}
	return t[i].value.clone(), true
}

// all returns copies of all records.
func (t table[T]) all() []T {
	values := make([]T, len(t))
	for i, e := range t {
		values[i] = e.value.clone()
	}
	return values
}

// where returns copies of the records that match.
func (t table[T]) where(match func(T) bool) (values []T) {
	for _, e := range t {
		if match(e.value) {
			values = append(values, e.value.clone())
		}
	}
	return values
}

// with returns t with e in it, in place of the record of the same ID. If that
// is the same already, it returns false.
func (t table[T]) with(e *entry[T]) (table[T], bool) {
	i, ok := t.find(e.value.key())
	if !ok {
		return slices.Concat(t[:i], table[T]{e}, t[i:]), true
	}
	if bytes.Equal(t[i].raw, e.raw) {
		return t, false
	}
	t = slices.Clone(t)
	t[i] = e
	return t, true
}

// without returns t without the records that match, and whether there were any.
func (t table[T]) without(match func(T) bool) (table[T], bool) {
	rest := slices.DeleteFunc(slices.Clone(t), func(e *entry[T]) bool { return match(e.value) })
	return rest, len(rest) != len(t)
}

// contents is the body of the file.
type contents struct {
	Networks  []Network  `json:"networks"`
	Endpoints []Endpoint `json:"endpoints"`
	Sysctls   []Sysctl   `json:"sysctls"`
}

// newState makes the state of what was read from a file.
func newState(c contents) (*state, error) {
	networks, err := newTable(c.Networks)
	if err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	endpoints, err := newTable(c.Endpoints)
	if err != nil {
		return nil, fmt.Errorf("endpoints: %w", err)
	}
	seen := make(map[string]bool, len(c.Sysctls))
	for _, sysctl := range c.Sysctls {
		if seen[sysctl.Path] {
			return nil, fmt.Errorf("sysctls: two of %q", sysctl.Path)
		}
		seen[sysctl.Path] = true
	}
	return &state{networks: networks, endpoints: endpoints, sysctls: c.Sysctls}, nil
}

func newTable[T record[T]](values []T) (table[T], error) {
	t := make(table[T], 0, len(values))
	for _, v := range values {
		e, err := newEntry(v)
		if err != nil {
			return nil, err
		}
		t = append(t, e)
	}
	slices.SortFunc(t, func(a, b *entry[T]) int { return strings.Compare(a.value.key(), b.value.key()) })
	for i := 1; i < len(t); i++ {
		if t[i].value.key() == t[i-1].value.key() {
			return nil, fmt.Errorf("two of ID %q", t[i].value.key())
		}
	}
	return t, nil
}

// body is the contents as JSON, a record a line, behind a header. It is put
// together by hand because encoding/json would check and compact every record
// again, which takes ten times as long as everything else a write does but for
// the disk.
func (s *state) body(header []byte) ([]byte, error) {
	sysctls, err := json.Marshal(append([]Sysctl{}, s.sysctls...)) // [], not null
	if err != nil {
		return nil, fmt.Errorf("sysctls: %w", err)
	}
	var b bytes.Buffer
	b.Grow(len(header) + s.networks.size() + s.endpoints.size() + len(sysctls) + 64)
	b.Write(header)
	b.WriteString(`{"networks":[`)
	s.networks.writeTo(&b)
	b.WriteString("],\n\"endpoints\":[")
	s.endpoints.writeTo(&b)
	b.WriteString("],\n\"sysctls\":")
	b.Write(sysctls)
	b.WriteString("}\n")
	return b.Bytes(), nil
}

func (t table[T]) size() int {
	n := 0
	for _, e := range t {
		n += len(e.raw) + len(",\n")
	}
	return n
}

func (t table[T]) writeTo(b *bytes.Buffer) {
	for i, e := range t {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
		b.Write(e.raw)
	}
}
