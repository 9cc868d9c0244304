package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"

	"github.com/portolan/portolan/portmap"
)

// streamed is a request that is read a member at a time, since one of its members
// may be long: an engine sends every port of a range by itself, and 14 MB for all
// ports of two protocols.
type streamed interface {
	// member reads one value.
	member(name string, dec *jsontext.Decoder) error
}

// decodeStream is decode for a streamed request.
func decodeStream(body io.Reader, v streamed) error {
	// As lenient as encoding/json, which reads all other requests.
	dec := jsontext.NewDecoder(body, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	err := members(dec, v.member)
	if errors.Is(err, io.EOF) {
		return errEmptyRequest
	}
	if err != nil {
		return fmt.Errorf("decode the request: %w", err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return fmt.Errorf("decode the request: %w", tooLarge)
		}
		return errors.New("decode the request: there is more after its end")
	}
	return nil
}

// members calls f for each member of an object; null has none.
func members(dec *jsontext.Decoder, f func(name string, dec *jsontext.Decoder) error) error {
	start, err := dec.ReadToken()
	switch {
	case err != nil:
		return err
	case start.Kind() == 'n':
		return nil
	case start.Kind() != '{':
		return fmt.Errorf("want an object, not %s", start.Kind())
	}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return unexpected(err)
		}
		if err := f(name.String(), dec); err != nil {
			return unexpected(err)
		}
	}
	_, err = dec.ReadToken()
	return unexpected(err)
}

// unexpected keeps the end of the input in the midst of a value apart from that
// before the first.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// value reads one value into v.
func value(dec *jsontext.Decoder, v any) error {
	raw, err := dec.ReadValue()
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

// elements calls f for each element of an array; null has none. The error of f
// does not end the reading: the first is returned apart.
func elements[T any](dec *jsontext.Decoder, f func(T) error) (bad, err error) {
	if dec.PeekKind() != '[' {
		var none []T
		raw, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		return json.Unmarshal(raw, &none), nil
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	v := new(T)
	for dec.PeekKind() != ']' {
		raw, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		if bad != nil {
			continue
		}
		if bad = element(raw, v); bad == nil {
			bad = f(*v)
		}
	}
	_, err = dec.ReadToken()
	return bad, err
}

// likeEncodingJSON has names match as encoding/json has them.
var likeEncodingJSON = jsonv2.JoinOptions(
	jsonv2.MatchCaseInsensitiveNames(true), jsonv1.MatchCaseSensitiveDelimiter(true),
	jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// element is json.Unmarshal, in a quarter of the time: there are many of them.
// The errors are encoding/json's.
func element[T any](raw []byte, v *T) error {
	var zero T
	*v = zero
	if jsonv2.Unmarshal(raw, v, likeEncodingJSON) == nil {
		return nil
	}
	*v = zero
	return json.Unmarshal(raw, v)
}

// member implements streamed.
func (r *endpointRequest) member(name string, dec *jsontext.Decoder) error {
	switch {
	case strings.EqualFold(name, "NetworkID"):
		return value(dec, &r.NetworkID)
	case strings.EqualFold(name, "EndpointID"):
		return value(dec, &r.EndpointID)
	}
	return dec.SkipValue()
}

func (r *createEndpointRequest) member(name string, dec *jsontext.Decoder) error {
	switch {
	case strings.EqualFold(name, "Interface"):
		return value(dec, &r.Interface)
	case strings.EqualFold(name, "Options"):
		return members(dec, func(name string, dec *jsontext.Decoder) error {
			if name != keyPortMap { // see programRequest
				return r.Options.member(name, dec)
			}
			return dec.SkipValue()
		})
	}
	return r.endpointRequest.member(name, dec)
}

func (r *joinRequest) member(name string, dec *jsontext.Decoder) error {
	if strings.EqualFold(name, "SandboxKey") {
		return value(dec, &r.SandboxKey)
	}
	return r.endpointRequest.member(name, dec)
}

func (r *programRequest) member(name string, dec *jsontext.Decoder) error {
	if strings.EqualFold(name, "Options") {
		return members(dec, r.Options.member)
	}
	return r.endpointRequest.member(name, dec)
}

// portOptions are an endpoint's options, as far as they are of use. What is
// wrong with them is the method's error, not the request's.
type portOptions struct {
	names    []string              // of all of them
	exposed  []portmap.ExposedPort // sorted, in ranges; nil where the option is missing
	bindings []portmap.PortBinding // neighbours in ranges
	err      error
}

func (o *portOptions) member(name string, dec *jsontext.Decoder) error {
	o.names = append(o.names, name)
	switch name {
	case keyExposed:
		var ports exposedPorts
		bad, err := elements(dec, ports.add)
		o.exposed = ports.ranges()
		o.fail("decode exposed ports", bad)
		return err
	case keyPortMap:
		var bindings portBindings
		bad, err := elements(dec, bindings.add)
		o.bindings = bindings.ranges()
		o.fail("decode port bindings", bad)
		return err
	}
	return dec.SkipValue()
}

func (o *portOptions) fail(doing string, err error) {
	if err != nil && o.err == nil {
		o.err = fmt.Errorf("%s: %w", doing, err)
	}
}
