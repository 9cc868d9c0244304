package store

import (
	"net/netip"
	"slices"
	"time"

	"github.com/portolan/portolan/portmap"
)

// Phase says how far the making of a record's object has come. The record is
// written before the kernel is changed, so that a crash in between leaves a
// trace of what to undo.
type Phase string

// The phases.
const (
	// Intent: rules and bridge of a network are being made; an endpoint is
	// created and has not joined.
	Intent Phase = "intent"
	// Done: they are made; the endpoint has joined.
	Done Phase = "done"
)

// Network is one network of the engine and all options it was created with.
type Network struct {
	portmap.Network

	Phase   Phase     `json:"phase,omitempty"`
	Created time.Time `json:"created,omitzero"`

	// MTU is in bytes; 0 means the kernel's default.
	MTU int `json:"mtu,omitempty"`
	// IfacePrefix is what interface names in containers begin with.
	IfacePrefix string `json:"ifacePrefix,omitempty"`
	// HostBinding4, where valid, is the host address of port bindings that
	// have none (com.docker.network.bridge.host_binding_ipv4).
	HostBinding4 netip.Addr `json:"hostBinding4,omitzero"`
	// ProxyRemote is that of portmap.Target for every endpoint.
	ProxyRemote bool `json:"proxyRemote,omitempty"`
	// MaxFlows is that of portmap.Target for every endpoint.
	MaxFlows int `json:"maxFlows,omitempty"`
	// InhibitIPv4: the bridge gets no IPv4 address
	// (com.docker.network.bridge.inhibit_ipv4).
	InhibitIPv4 bool `json:"inhibitIPv4,omitempty"`
	// NextHop4 and NextHop6 are what containers are told as their gateway: the
	// bridge's address, or another one that the user named (the auxiliary
	// address DefaultGatewayIPv4), or the zero Addr for none.
	NextHop4 netip.Addr `json:"nextHop4,omitzero"`
	NextHop6 netip.Addr `json:"nextHop6,omitzero"`
}

func (n Network) key() string { return n.ID }

func (n Network) clone() Network {
	n.Trusted = slices.Clone(n.Trusted)
	return n
}

// Endpoint is one container's end of a network.
type Endpoint struct {
	ID      string `json:"id"`
	Network string `json:"network"` // its ID

	Phase   Phase     `json:"phase,omitempty"`
	Created time.Time `json:"created,omitzero"`
	// Gone is when the host-side interface was found to have vanished with its
	// container. Where it is not zero the endpoint is a tombstone: it holds no
	// port and is kept only so that the engine can take leave of it.
	Gone time.Time `json:"gone,omitzero"`

	// Sandbox is the SandboxKey of Join, the same for all endpoints of one run
	// of a container; empty before.
	Sandbox string       `json:"sandbox,omitempty"`
	Addr4   netip.Prefix `json:"addr4,omitzero"`
	Addr6   netip.Prefix `json:"addr6,omitzero"`
	MAC     string       `json:"mac,omitempty"`
	Veth    string       `json:"veth,omitempty"` // the host-side interface

	// Owner is nil until somebody has told.
	Owner *Owner `json:"owner,omitempty"`

	Exposed []portmap.ExposedPort `json:"exposed,omitempty"`
	// Gateway: the engine's last word on this endpoint was to publish
	// (ProgramExternalConnectivity), not to revoke.
	Gateway  bool     `json:"gateway,omitempty"`
	Mappings Mappings `json:"mappings,omitempty"`
	// Parked are the mappings whose host ports the sandbox keeps while none of
	// its endpoints publishes: those of the one that was its gateway last.
	Parked Mappings `json:"parked,omitempty"`
}

func (e Endpoint) key() string { return e.ID }

func (e Endpoint) clone() Endpoint {
	if e.Owner != nil {
		owner := *e.Owner
		e.Owner = &owner
	}
	e.Exposed = slices.Clone(e.Exposed)
	e.Mappings = slices.Clone(e.Mappings)
	e.Parked = slices.Clone(e.Parked)
	return e
}

// Owner is the container an endpoint belongs to. No message of the engine
// carries it: it is told from outside.
type Owner struct {
	ContainerID   string `json:"containerID"`
	ContainerName string `json:"containerName"`
}

// Sysctl is a kernel setting that was changed, and what to change it back to.
type Sysctl struct {
	Path string `json:"path"` // below /proc/sys/net, as ipv4/ip_forward
	Old  string `json:"old"`
	New  string `json:"new"`
}
