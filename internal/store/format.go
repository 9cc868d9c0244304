package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// ErrNewer means that the state file was written by a newer program than this.
// The file is as it was.
var ErrNewer = errors.New("written by a newer version of portolan")

// errDamaged means that the file is not what any version wrote.
var errDamaged = errors.New("damaged")

const format = "portolan-state"

type header struct {
	Format string `json:"format"`
	Schema int    `json:"schema"`
	SHA256 string `json:"sha256"` // lower-case hex
}

// migration turns a body of one schema, which has passed the checksum, into one
// of the next. Where it cannot, or the result does not load, Open refuses.
type migration func(body []byte) ([]byte, error)

// migrations has at index i the step from schema i+1 to i+2.
var migrations []migration

// schemaAfter is the schema that steps lead to.
func schemaAfter(steps []migration) int { return len(steps) + 1 }

// headerLine is the header of a file with that body, without its newline.
func headerLine(schema int, body []byte) []byte {
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %d\n", format, schema)
	sum.Write(body)
	return fmt.Appendf(nil, `{"format":"%s","schema":%d,"sha256":"%s"}`, format, schema, hex.EncodeToString(sum.Sum(nil)))
}

// encode is the file for s.
func encode(s *state, schema int) ([]byte, error) {
	room := append(headerLine(schema, nil), '\n') // as long as the header of any body
	file, err := s.body(room)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	copy(file, headerLine(schema, file[len(room):]))
	return file, nil
}

// decode is the state in a file. The error wraps errDamaged, ErrNewer or, where
// the fault is this program's, neither.
func decode(file []byte, steps []migration) (*state, error) {
	schema, body, err := unseal(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	known := schemaAfter(steps)
	if schema > known {
		return nil, fmt.Errorf("schema %d, this program's is %d: %w", schema, known, ErrNewer)
	}
	for n := schema; n < known; n++ {
		if body, err = steps[n-1](body); err != nil {
			return nil, fmt.Errorf("migrate from schema %d to %d: %w", n, n+1, err)
		}
	}
	s, err := parse(body)
	if err != nil && schema < known {
		// The file was good: it is not set aside for what became of it.
		return nil, fmt.Errorf("migrate from schema %d to %d: result: %s", schema, known, err.Error())
	}
	return s, err
}

// parse is the state in a body of this program's schema. Its errors are those
// of decode.
func parse(body []byte) (*state, error) {
	c, err := parseContents(body)
	if err != nil {
		return nil, err
	}
	s, err := newState(c)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return s, nil
}

func parseContents(body []byte) (contents, error) {
	var c contents
	strict := json.NewDecoder(bytes.NewReader(body))
	strict.DisallowUnknownFields()
	err := strict.Decode(&c)
	if err == nil {
		if _, err := strict.Token(); errors.Is(err, io.EOF) {
			return c, nil
		}
		return c, fmt.Errorf("%w: something after the end", errDamaged)
	}
	// What reads well but for that has fields that are not known: see Versions
	// in the package comment.
	if json.Unmarshal(body, &contents{}) == nil {
		return c, fmt.Errorf("%w: %w", err, ErrNewer)
	}
	return c, fmt.Errorf("%w: %w", errDamaged, err)
}

// unseal checks the header and returns the schema and the body.
func unseal(file []byte) (schema int, body []byte, err error) {
	if len(file) == 0 {
		return 0, nil, errors.New("empty file")
	}
	line, body, ok := bytes.Cut(file, []byte("\n"))
	if !ok {
		return 0, nil, errors.New("nothing after the header")
	}
	var h header
	if err := json.Unmarshal(line, &h); err != nil {
		return 0, nil, fmt.Errorf("header: %w", err)
	}
	if h.Format != format || h.Schema < 1 {
		return 0, nil, fmt.Errorf("header: format %q, schema %d", h.Format, h.Schema)
	}
	// The whole line is compared, not the checksum only: JSON has many ways to
	// write the same, and all but one of them are damage.
	if !bytes.Equal(line, headerLine(h.Schema, body)) {
		return 0, nil, errors.New("checksum mismatch")
	}
	return h.Schema, body, nil
}
