package driver

import (
	"encoding/json"
	"errors"

	"github.com/docker/go-plugins-helpers/network"
)

// The messages of the remote driver protocol, where those of
// go-plugins-helpers are too narrow: a network's options stay undecoded until
// somebody needs them, an endpoint's are read as a stream (stream.go), and replies
// may have structured values.

// contentType is what engines since 1.13 ask for.
const contentType = "application/vnd.docker.plugins.v1.2+json"

// Keys of options, word for word libnetwork's (package netlabel).
const (
	keyEnableIPv4 = "com.docker.network.enable_ipv4"
	keyEnableIPv6 = "com.docker.network.enable_ipv6"
	keyInternal   = "com.docker.network.internal"
	keyGeneric    = "com.docker.network.generic"
	keyPortMap    = "com.docker.network.portmap"
	keyExposed    = "com.docker.network.endpoint.exposedports"
)

// rawOptions are options by key, each as it came.
type rawOptions map[string]json.RawMessage

// nothing is the empty request, and the empty answer.
type nothing struct{}

type capabilitiesResponse struct {
	network.CapabilitiesResponse
	GwAllocChecker bool
}

type gwAllocCheckRequest struct {
	Options rawOptions
}

type gwAllocCheckResponse struct {
	SkipIPv4, SkipIPv6 bool
}

// networkRequest is DeleteNetwork, and the part that others begin with.
type networkRequest struct {
	NetworkID string
}

func (r networkRequest) check() error {
	if r.NetworkID == "" {
		return errors.New("no NetworkID")
	}
	return nil
}

type createNetworkRequest struct {
	networkRequest
	Options            rawOptions
	IPv4Data, IPv6Data []network.IPAMData
}

// endpointRequest is EndpointOperInfo, DeleteEndpoint, Leave and
// RevokeExternalConnectivity, and the part that others begin with.
type endpointRequest struct {
	NetworkID, EndpointID string
}

func (r endpointRequest) check() error {
	switch {
	case r.NetworkID == "":
		return errors.New("no NetworkID")
	case r.EndpointID == "":
		return errors.New("no EndpointID")
	}
	return nil
}

type createEndpointRequest struct {
	endpointRequest
	Interface *network.EndpointInterface
	Options   portOptions // without the bindings, which count in programRequest alone
}

// createEndpointResponse has only what was empty in the request: libnetwork
// takes anything else for an attempt to overrule it.
type createEndpointResponse struct {
	Interface struct {
		MacAddress string `json:",omitempty"`
	}
}

// joinRequest leaves out the options: they are those of
// ProgramExternalConnectivity, which comes only to the gateway.
type joinRequest struct {
	endpointRequest
	SandboxKey string
}

func (r joinRequest) check() error {
	if err := r.endpointRequest.check(); err != nil {
		return err
	}
	if r.SandboxKey == "" {
		return errors.New("no SandboxKey")
	}
	return nil
}

type programRequest struct {
	endpointRequest
	Options portOptions
}

type operInfoResponse struct {
	Value map[string]any
}
