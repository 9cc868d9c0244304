package portmap

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/docker/go-connections/nat"
)

// ErrBadPort is wrapped by every error about a port notation or binding that
// can never be published.
var ErrBadPort = errors.New("bad port")

// ParsePorts reads the notation of `docker run -p`:
// [HOSTIP:][HOSTPORT[-END]:]PORT[-END][/tcp|/udp|/sctp], TCP where no protocol
// is named. A range of container ports becomes one binding a port. The error
// wraps ErrBadPort. The rules are those of docker/go-connections/nat, which the
// docker command uses.
func ParsePorts(specs ...string) ([]PortBinding, error) {
	var bs []PortBinding
	for _, spec := range specs {
		parsed, err := nat.ParsePortSpec(spec)
		if err != nil {
			return nil, fmt.Errorf("publish %q: %w: %w", spec, ErrBadPort, err)
		}
		for _, p := range parsed {
			b, err := fromNat(p)
			if err != nil {
				return nil, fmt.Errorf("publish %q: %w: %w", spec, ErrBadPort, err)
			}
			bs = append(bs, b)
		}
	}
	return bs, nil
}

func fromNat(p nat.PortMapping) (b PortBinding, err error) {
	if b.Proto, err = ParseProto(p.Port.Proto()); err != nil {
		return b, err
	}
	b.Port = uint16(p.Port.Int())
	if p.Binding.HostIP != "" {
		if b.HostIP, err = netip.ParseAddr(p.Binding.HostIP); err != nil {
			return b, err
		}
	}
	if p.Binding.HostPort == "" {
		return b, nil
	}
	first, last, err := nat.ParsePortRange(p.Binding.HostPort)
	b.HostPort, b.HostPortEnd = uint16(first), uint16(last)
	return b, err
}

// ParseProto reads "tcp", "udp" or "sctp".
func ParseProto(s string) (Proto, error) {
	for _, p := range Protos {
		if s == p.String() {
			return p, nil
		}
	}
	return 0, fmt.Errorf("unknown protocol %s; known are tcp, udp, sctp", strconv.Quote(s))
}

// broadcast is the limited broadcast address (RFC 919), which bind(2) takes for
// UDP.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// normal fills in what a binding may leave out and refuses what can never be
// published. The error wraps ErrBadPort.
func (b PortBinding) normal() (PortBinding, error) {
	b.HostIP = b.HostIP.Unmap()
	if b.HostPortEnd == 0 {
		b.HostPortEnd = b.HostPort
	}
	switch {
	case !b.Proto.Valid():
		return b, fmt.Errorf("publish %s: %w: protocol number %d; known are tcp (6), udp (17), sctp (132)", b, ErrBadPort, b.Proto)
	case b.Port == 0:
		return b, fmt.Errorf("publish %s: %w: container port 0; a container port is 1 to 65535", b, ErrBadPort)
	case b.HostPortEnd < b.HostPort:
		return b, fmt.Errorf("publish %s: %w: host port range %d-%d is reversed; write %d-%d",
			b, ErrBadPort, b.HostPort, b.HostPortEnd, b.HostPortEnd, b.HostPort)
	case b.HostPort == 0 && b.HostPortEnd != 0:
		return b, fmt.Errorf("publish %s: %w: a host port range starts at 1", b, ErrBadPort)
	case b.PortEnd != 0 && int(b.PortEnd)-int(b.Port) != int(b.HostPortEnd)-int(b.HostPort):
		return b, fmt.Errorf("publish %s: %w: the ranges differ in length", b, ErrBadPort)
	case b.HostIP.Is6() && b.HostIP.IsLinkLocalUnicast():
		return b, fmt.Errorf("publish %s: %w: host address %s is link-local, which means something on one interface alone; publish on another address or on all",
			b, ErrBadPort, b.HostIP)
	case b.HostIP.Zone() != "":
		return b, fmt.Errorf("publish %s: %w: host address %s has a zone; leave %%%s out", b, ErrBadPort, b.HostIP, b.HostIP.Zone())
	case b.HostIP.IsMulticast() || b.HostIP == broadcast:
		return b, fmt.Errorf("publish %s: %w: %s is not an address of one host; leave it out to publish on all", b, ErrBadPort, b.HostIP)
	}
	return b, nil
}
