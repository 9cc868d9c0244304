package portmap

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// conflictError is a host port that somebody else holds. Who it is is looked up
// only when somebody wants to read it.
type conflictError struct {
	mapping Mapping
	port    uint16     // the first of mapping's that is held
	more    int        // so many of the others are held too
	addr    netip.Addr // where it is held, if an endpoint holds it
	sandbox string     // of the holding endpoint
	own     bool       // asked for twice by one sandbox
	process bool       // held by another process
	name    string     // what the Publisher knows of the endpoint
}

func (e *conflictError) Unwrap() error { return ErrPortInUse }

func (e *conflictError) Error() string {
	what := fmt.Sprintf("%s port %d", e.mapping.Proto, e.port)
	if e.more > 0 {
		what += fmt.Sprintf(" (and %d more of %s)", e.more, e.mapping)
	}
	const other = "choose another host port"
	switch {
	case e.own:
		return what + " is asked for twice by this container; a host port leads to one container port, once"
	case !e.process:
		name := e.name
		if name == "" {
			name = "another container"
		}
		return fmt.Sprintf("%s is in use by %s on %s; %s or stop that container", what, name, e.addr, other)
	}
	h, found := findHolder(e.mapping.Proto, e.mapping.HostIP, e.port)
	if !found {
		return fmt.Sprintf("%s is in use by another process; %s", what, other)
	}
	if e.mapping.Wildcard() && !h.addr.IsUnspecified() {
		return fmt.Sprintf("%s is in use by %s; publish on one address: -p %s", what, h, e.mapping.notation(hostAddress(h.addr)))
	}
	return fmt.Sprintf("%s is in use by %s; %s or stop that process", what, h, other)
}

// notation is how `docker run -p` is told to publish m on one host address.
func (m Mapping) notation(host netip.Addr) string {
	ports := strconv.Itoa(int(m.HostPort))
	to := strconv.Itoa(int(m.Port))
	if m.Len() > 1 {
		ports += fmt.Sprintf("-%d", m.HostPortEnd)
		to += fmt.Sprintf("-%d", m.PortEnd())
	}
	return fmt.Sprintf("%s:%s/%s", net.JoinHostPort(host.String(), ports), to, m.Proto)
}

// noneFreeError is a range of which every port is held.
type noneFreeError struct {
	mapping Mapping // its host ports are what there was to choose from
	first   error   // why the first is not free
}

func (e *noneFreeError) Unwrap() error { return e.first }

func (e *noneFreeError) Error() string {
	return fmt.Sprintf("no %s port of %d-%d is free for container port %d: %s",
		e.mapping.Proto, e.mapping.HostPort, e.mapping.HostPortEnd, e.mapping.Port, e.first)
}
