package portmap

import "errors"

// ErrPortInUse is wrapped by every error that says that a host port is held by
// somebody else.
var ErrPortInUse = errors.New("host port in use")

// Mapper keeps the rules of networks and of published ports in the kernel.
//
// It has a mirror of what it has set; what is removed is what the mirror says
// belongs to the endpoint or network named, never what merely has the same
// port. Every method is safe for concurrent use, and a method that fails leaves
// the kernel as it was (iptables, which is not atomic, as near as it can), but for
// Unmap.
type Mapper interface {
	// Load replaces whatever an earlier process left by nets and pubs. A
	// publication whose network is not among nets is an error.
	Load(nets []Network, pubs []Publication) error
	// AddNetwork sets the rules of a network: masquerade, hairpin, forwarding
	// and its locks (127.0.0.0/8 from outside is dropped before the bridge may
	// be given route_localnet). With a known ID it replaces them.
	AddNetwork(n Network) error
	// RemoveNetwork removes a network's rules and all that its endpoints
	// published; the last one takes the table along. Unknown IDs are nil.
	RemoveNetwork(id string) error
	// Map makes p.Mappings all that p.Endpoint publishes: what it published
	// before and is not among them goes, in the same transaction. The error
	// wraps ErrPortInUse where another endpoint has one of the host ports.
	Map(p Publication) error
	// Unmap removes all that an endpoint still owns. Unknown IDs are nil. After an
	// error the endpoint owns nothing either, as it will not be there to be asked
	// again: what is left of it in the kernel goes with the next Check.
	Unmap(endpoint string) error
	// Guard drops forwarded traffic of a family that is neither a network's of
	// ours nor established: what Docker's FORWARD policy DROP does, for hosts
	// where Portolan turned on forwarding.
	Guard(ipv4, ipv6 bool) error
	// Guarded is for which families Guard's rules are in the kernel, whoever
	// has set them: an earlier process, before Load.
	Guarded() (ipv4, ipv6 bool, err error)
	// Check compares the kernel with the mirror and repairs what is missing.
	// It says whether anything was.
	Check() (repaired bool, err error)
	// List is what the kernel holds now, by endpoint, in no particular order:
	// the truth that tests and reports compare with the mirror. Targets have
	// only Endpoint, IPv4 and IPv6.
	List() ([]Publication, error)
	// Drops are what the limits of Target.MaxFlows have dropped, by mapping, in no
	// particular order.
	Drops() ([]Drop, error)
	// Close ends the Mapper and leaves the rules where they are.
	Close() error
}
