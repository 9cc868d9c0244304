package store

import (
	"encoding/json"
	"strings"

	"github.com/portolan/portolan/portmap"
)

// Mappings are those of an endpoint. In the file each is a text, in the notation
// of portmap.Mapping.String and followed by its origin unless that is the
// engine: as "8080->80" or "53->53/udp sticky". There may be ten thousands, all
// of them written at every change, and a text is a quarter of an object.
type Mappings []portmap.Mapping

// MarshalJSON implements json.Marshaler.
func (ms Mappings) MarshalJSON() ([]byte, error) {
	texts := make([]string, len(ms))
	for i, m := range ms {
		texts[i] = m.String()
		if m.Origin != "" && m.Origin != portmap.OriginEngine {
			texts[i] += " " + string(m.Origin)
		}
	}
	return marshal(texts)
}

// UnmarshalJSON implements json.Unmarshaler. It also reads the objects of before.
func (ms *Mappings) UnmarshalJSON(data []byte) error {
	var texts []mappingText
	if err := json.Unmarshal(data, &texts); err != nil {
		return err
	}
	*ms = nil
	for _, t := range texts {
		*ms = append(*ms, portmap.Mapping(t))
	}
	return nil
}

type mappingText portmap.Mapping

func (m *mappingText) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '{' {
		return json.Unmarshal(data, (*portmap.Mapping)(m))
	}
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	text, origin, told := strings.Cut(text, " ")
	parsed, err := portmap.ParseMapping(text)
	if err != nil {
		return err
	}
	parsed.Origin = portmap.OriginEngine
	if told {
		parsed.Origin = portmap.Origin(origin)
	}
	*m = mappingText(parsed)
	return nil
}
