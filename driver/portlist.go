package driver

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/portolan/portolan/portmap"
)

// exposedPorts collects ports that come one by one, in no order.
type exposedPorts []uint32 // protocol and port

func (e *exposedPorts) add(p transportPort) error {
	*e = append(*e, uint32(p.Proto)<<16|uint32(p.Port))
	return nil
}

// ranges are the ports, sorted, and neighbours as one; never nil.
func (e exposedPorts) ranges() []portmap.ExposedPort {
	slices.Sort(e)
	out := []portmap.ExposedPort{}
	for i, p := range slices.Compact(e) {
		port := uint16(p)
		if n := len(out) - 1; i > 0 && p == e[i-1]+1 && out[n].Proto == portmap.Proto(p>>16) {
			out[n].PortEnd = port
			continue
		}
		out = append(out, portmap.ExposedPort{Proto: portmap.Proto(p >> 16), Port: port})
	}
	return out
}

// portBindings collects bindings that come one by one, in no order: those of one
// host port each in four bytes, until they are ranges.
type portBindings struct {
	exact map[bindingKind][]uint32 // host port and container port
	order []bindingKind            // of exact, as they came
	other []portmap.PortBinding
}

// bindingKind is what all ports of a range have in common.
type bindingKind struct {
	proto  portmap.Proto
	hostIP netip.Addr
}

func (b *portBindings) add(p portmap.PortBinding) error {
	if !p.Proto.Valid() {
		return fmt.Errorf("protocol %d of port %d cannot be published; tcp, udp and sctp can", p.Proto, p.Port)
	}
	p.HostIP = p.HostIP.Unmap()
	if p.HostPort == 0 || p.HostPortEnd != 0 && p.HostPortEnd != p.HostPort {
		b.other = append(b.other, p)
		return nil
	}
	k := bindingKind{p.Proto, p.HostIP}
	if b.exact == nil {
		b.exact = map[bindingKind][]uint32{}
	}
	if b.exact[k] == nil {
		b.order = append(b.order, k)
	}
	b.exact[k] = append(b.exact[k], uint32(p.HostPort)<<16|uint32(p.Port))
	return nil
}

// ranges are the bindings, and neighbours as one. What came twice is there twice.
func (b *portBindings) ranges() []portmap.PortBinding {
	var out []portmap.PortBinding
	for _, k := range b.order {
		ports := b.exact[k]
		slices.Sort(ports)
		const next = 1<<16 | 1 // both numbers
		for i := 0; i < len(ports); {
			j := i + 1
			for j < len(ports) && ports[j] == ports[j-1]+next && uint16(ports[j]) != 0 {
				j++
			}
			first, last := ports[i], ports[j-1]
			one := portmap.PortBinding{
				Proto: k.proto, HostIP: k.hostIP, Port: uint16(first),
				HostPort: uint16(first >> 16), HostPortEnd: uint16(last >> 16),
			}
			if j > i+1 {
				one.PortEnd = uint16(last)
			}
			out = append(out, one)
			i = j
		}
	}
	return append(out, b.other...)
}
