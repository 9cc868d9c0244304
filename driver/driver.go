// Package driver is Docker's side of Portolan: a libnetwork remote driver that
// makes networks, puts containers on them and has their ports published.
//
// A Driver answers the engine's calls over HTTP (Handler). A network is a Linux
// bridge, an endpoint a veth pair between that bridge and the container; both
// are made over netlink. Which ports an endpoint publishes is said in
// ProgramExternalConnectivity and handed to a Publisher; the rules of a network
// are a portmap.Mapper's. Records are in a store.Store.
//
// # Ownership
//
// Every interface made here has an alias that begins with "portolan ", and
// nothing without one is ever changed or removed. Sysctls outside of our own
// bridges are recorded in the store before they are set, and put back when the
// last network that needs them goes.
//
// # Order
//
// A record is written before the kernel is changed; undo runs backwards.
// Locks are taken in the order network, endpoint, sandbox: a network's is
// shared by calls for its endpoints and exclusive for its making and removal; a
// sandbox's orders what its endpoints publish. Driver.admitting comes after the
// lock of the network that is made, and in cleanup before those of all that are
// there, of which that is none; Driver.forwarding comes last. Everything here is
// synchronous, but for the goroutine that net/http keeps for each bounded call.
package driver

import (
	"log/slog"
	"sync"
	"time"

	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// Publisher publishes ports; *portmap.Publisher is the real one.
type Publisher interface {
	// Publish makes bs all that t's endpoint publishes for the sandbox, whose
	// other endpoints lose what this one takes over. It calls record with the
	// resulting mappings after the host ports are reserved and before the
	// kernel changes, and its undo after an error. It is idempotent; after an
	// error nothing new is held.
	Publish(sandbox string, t portmap.Target, bs []portmap.PortBinding, record portmap.Record) ([]portmap.Mapping, error)
	// Unpublish unmaps and stops serving what the endpoint still publishes; the
	// reservation stays with the sandbox. Unknown IDs are nil.
	Unpublish(endpoint string) error
	// Release gives back the host ports of a sandbox whose last endpoint has
	// left. Unknown sandboxes are nil.
	Release(sandbox string) error
	// Restore reserves what runs held, loads their mappings and nets' rules
	// into the kernel in place of whatever is there, and serves. A port that
	// was taken meanwhile loses only itself. UDP clients of what is gone are cut
	// off from it.
	Restore(nets []portmap.Network, runs []portmap.Run, gone []portmap.Mapping) error
}

// Zones is told which interfaces are bridges of ours, for a firewall that has to
// let them through; *firewalld.Zones is the real one.
type Zones interface {
	// Add is called again and again; that nothing is to be done is nil.
	Add(bridge string) error
	// Remove of what is not there is nil.
	Remove(bridge string) error
}

// Config is what a Driver needs. Store, Mapper and Publisher are required.
type Config struct {
	Store     *store.Store
	Mapper    portmap.Mapper
	Publisher Publisher
	// SysctlDir is /proc/sys/net where it can be written; "" means there.
	SysctlDir string
	// IPForward: turn forwarding on where it is off. Without it, what is
	// missing is logged.
	IPForward bool
	// Zones may be nil.
	Zones Zones
	// Log is silent if nil.
	Log *slog.Logger
	// Status is what /Portolan.Status answers; nil is nothing.
	Status func() (portmap.Status, error)
	// Version and Info are what /Portolan.Version answers.
	Version string
	Info    map[string]string
}

// Driver is a libnetwork remote driver. Its methods are safe for concurrent
// use.
type Driver struct {
	cfg    Config
	log    *slog.Logger
	store  *store.Store
	mapper portmap.Mapper
	pub    Publisher
	sys    sysctls
	clock  clock

	maxBody int64 // bytes of a request

	networks, endpoints, sandboxes locks

	admitting  sync.Mutex           // held from the checks of a new network to its record; guards admitted
	admitted   map[string]time.Time // networks that this process was asked for, to when the engine that asked began
	forwarding sync.Mutex           // orders changes of forwarding and of the guard; guards below
	going      map[string]bool      // networks that are being removed, which need none any more
	forwarded  [len(families)]bool  // seen to be on, and not by us

	engines engines

	// Restore's, and then Check's own.
	unbuilt map[string]bool // networks that could not be rebuilt at the start

	cutMu sync.Mutex // guards below
	cut   map[string]cutOff

	restoreOnce sync.Once
	restored    chan struct{} // closed when Restore returns
	restoreErr  error         // what it returned
}

// New returns a Driver, which changes nothing before Restore is called.
func New(cfg Config) *Driver {
	if cfg.SysctlDir == "" {
		cfg.SysctlDir = defaultSysctlDir
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{
		cfg:      cfg,
		log:      cfg.Log,
		store:    cfg.Store,
		mapper:   cfg.Mapper,
		pub:      cfg.Publisher,
		sys:      sysctls{cfg.SysctlDir},
		clock:    newClock(),
		maxBody:  maxBody,
		restored: make(chan struct{}),
	}
}
