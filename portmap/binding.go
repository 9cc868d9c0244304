package portmap

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// Proto is an IP protocol number (IANA): TCP, UDP or SCTP.
type Proto uint8

// The protocols whose ports can be published.
const (
	TCP  Proto = 6
	UDP  Proto = 17
	SCTP Proto = 132
)

// Protos are all of them, in the order in which reports list them.
var Protos = [...]Proto{TCP, UDP, SCTP}

// String is "tcp", "udp" or "sctp".
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return "proto-" + strconv.Itoa(int(p))
}

// Valid says whether p is one of Protos.
func (p Proto) Valid() bool { return p == TCP || p == UDP || p == SCTP }

// PortBinding asks for one container port on the host, or for a range of them.
// Its fields are those of libnetwork's types.PortBinding, and so is its JSON, but
// for PortEnd: an engine has a binding for each port.
//
// HostPort 0 means any free port; HostPort < HostPortEnd means the lowest free
// one of that closed range; HostPortEnd 0 means HostPort. With PortEnd > Port it
// is the closed range HostPort to HostPortEnd, of the same length and in order.
type PortBinding struct {
	Proto       Proto
	IP          netip.Addr // the container's; the engine leaves it empty
	Port        uint16     // the container's
	PortEnd     uint16     `json:"-"` // the last of a range, or 0
	HostIP      netip.Addr // the zero Addr means every address, both families
	HostPort    uint16
	HostPortEnd uint16
}

// String is the notation of `docker run -p`, as 192.0.2.1:8000-8010:80/tcp.
func (b PortBinding) String() string {
	host := ""
	if b.HostPort != 0 {
		host = strconv.Itoa(int(b.HostPort))
	}
	if b.HostPortEnd > b.HostPort {
		host += "-" + strconv.Itoa(int(b.HostPortEnd))
	}
	port := strconv.Itoa(int(b.Port))
	if b.PortEnd > b.Port {
		port += "-" + strconv.Itoa(int(b.PortEnd))
	}
	switch {
	case b.HostIP.IsValid():
		host = net.JoinHostPort(b.HostIP.String(), host)
	case host == "":
		return fmt.Sprintf("%s/%s", port, b.Proto)
	}
	return fmt.Sprintf("%s:%s/%s", host, port, b.Proto)
}
