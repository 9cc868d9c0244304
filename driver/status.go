package driver

import (
	"context"

	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/proxy"
)

// StatusResponse is the answer of /Portolan.Status: the numbers that are not
// zero. Mappings without any are left out.
type StatusResponse struct {
	Mappings []MappingStatus
	Host     []proxy.Sample
}

// MappingStatus is the numbers of a mapping of an endpoint.
type MappingStatus struct {
	EndpointID string
	Mapping    portmap.Mapping
	Samples    []proxy.Sample
}

func (d *Driver) status(context.Context, nothing) (StatusResponse, error) {
	resp := StatusResponse{Mappings: []MappingStatus{}, Host: []proxy.Sample{}}
	if d.cfg.Status == nil {
		return resp, nil
	}
	st, err := d.cfg.Status()
	if err != nil {
		return resp, err
	}
	for _, m := range st.Mappings {
		if len(m.Samples) > 0 {
			resp.Mappings = append(resp.Mappings, MappingStatus{m.Endpoint, m.Mapping, m.Samples})
		}
	}
	resp.Host = append(resp.Host, st.Host...)
	return resp, nil
}
