package portmap

import (
	"errors"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/fault"
)

// Allocator hands out the host ports of one protocol. A port is taken in its
// index first and by a Socket then, so that neither another endpoint nor another
// process can have it.
//
// It is safe for concurrent use.
type Allocator struct {
	proto     Proto
	reserver  Reserver
	blocks    *blocks // nil: a socket for every port
	sysctlDir string

	mu    sync.Mutex // guards below; not held while a socket is bound
	held  portIndex  // owners are sandboxes
	after uint16     // the ephemeral port handed out last
}

// NewAllocator returns the allocator of one protocol. The ephemeral range is
// read below sysctlDir, as /proc/sys/net.
func NewAllocator(p Proto, r Reserver, sysctlDir string) *Allocator {
	return &Allocator{proto: p, reserver: r, sysctlDir: sysctlDir, held: portIndex{}}
}

// lease is a reserved host port of one host address, or a block of them.
type lease struct {
	Mapping        // of length 1 where a socket holds it
	held    bool   // in the allocator's index; a port of a routed network is not
	*Socket        // nil for a block
	block   *block // or nil
}

func (l lease) close() error {
	if l.block != nil {
		return l.block.release(l.Mapping)
	}
	return l.Socket.Close()
}

// Exact takes every port of m, a range all or nothing, for a sandbox. The error
// wraps ErrPortInUse where a port is held by another endpoint or process: it
// names the first that is and says how many more are. Otherwise it wraps what
// bind(2) said.
func (a *Allocator) Exact(m Mapping, sandbox string) ([]lease, error) {
	if err := a.take(m, sandbox); err != nil {
		return nil, err
	}
	leases, err := a.bind(m)
	if err != nil {
		a.forget(m, sandbox)
		return nil, err
	}
	return leases, nil
}

// park takes those ports of m that no other sandbox holds, and has no socket for
// them.
func (a *Allocator) park(m Mapping, sandbox string) (leases []lease) {
	for i := range m.Len() {
		if one := m.at(i); a.take(one, sandbox) == nil {
			leases = append(leases, lease{Mapping: one, held: true, Socket: noSocket()})
		}
	}
	return leases
}

func (a *Allocator) take(m Mapping, sandbox string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s, addr, taken := a.held.conflict(m, ""); taken {
		return &conflictError{
			mapping: m, port: s.first, addr: addr, sandbox: s.owner, own: s.owner == sandbox,
			more: a.held.count(m) - 1,
		}
	}
	a.held.add(m, sandbox)
	return nil
}

func (a *Allocator) forget(m Mapping, sandbox string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held.remove(m, sandbox)
}

// bind reserves the ports of m: a long range as one, if this host can, and
// others by a socket for each, in order, as long as there are files.
func (a *Allocator) bind(m Mapping) ([]lease, error) {
	if a.blocks.wants(m) {
		l := lease{Mapping: m}
		err := a.bindBlock(&l)
		if err == nil || errors.Is(err, ErrPortInUse) {
			return []lease{l}, err
		}
		a.blocks.log.Warn("a socket for each port instead", "ports", m, "err", err)
	}
	leases, err := a.bindSockets(m)
	if a.blocks.can(m) && (errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)) {
		l := lease{Mapping: m}
		if a.bindBlock(&l) == nil {
			return []lease{l}, nil
		}
	}
	return leases, err
}

func (a *Allocator) bindBlock(l *lease) error {
	b, err := a.blocks.reserve(l.Mapping)
	if errors.Is(err, unix.EADDRINUSE) {
		port, more := l.HostPort, 0
		if taken, ok := errors.AsType[interface {
			error
			Taken() (first uint16, more int)
		}](err); ok {
			port, more = taken.Taken()
		}
		return a.bindError(l.Mapping, port, more, err)
	}
	if err != nil {
		return a.bindError(l.Mapping, l.HostPort, 0, err)
	}
	fault.Point("reserve block")
	l.block, l.held = b, true
	return nil
}

func (a *Allocator) bindSockets(m Mapping) ([]lease, error) {
	leases := make([]lease, 0, m.Len())
	for i := range m.Len() {
		one := m.at(i)
		s, err := a.reserver.Reserve(a.proto, m.HostIP, one.HostPort)
		if err != nil {
			more := 0
			if errors.Is(err, unix.EADDRINUSE) {
				more = a.countTaken(m, i+1)
			}
			return nil, join(a.bindError(m, one.HostPort, more, err), closeLeases(leases))
		}
		fault.Point("reserve socket")
		leases = append(leases, lease{Mapping: one, held: true, Socket: s})
	}
	return leases, nil
}

// bindAgain reserves the port, or the block, of a lease that was closed.
func (a *Allocator) bindAgain(l *lease) error {
	if l.block != nil {
		return a.bindBlock(l)
	}
	leases, err := a.bindSockets(l.Mapping)
	if err != nil {
		return err
	}
	*l = leases[0]
	return nil
}

func closeLeases(leases []lease) (err error) {
	for _, l := range leases {
		err = errors.Join(err, l.close())
	}
	return err
}

// countTaken counts the ports of m from the i-th on that cannot be bound, for
// an error that need not be asked for again port by port.
func (a *Allocator) countTaken(m Mapping, i int) (n int) {
	for ; i < m.Len(); i++ {
		s, err := a.reserver.Reserve(a.proto, m.HostIP, m.at(i).HostPort)
		switch {
		case err == nil:
			_ = s.Close()
		case errors.Is(err, unix.EADDRINUSE):
			n++
		}
	}
	return n
}

// join is errors.Join, but for a cause that is alone.
func join(err, undo error) error {
	if undo == nil {
		return err
	}
	return errors.Join(err, undo)
}

// at is the i-th port of m.
func (m Mapping) at(i int) Mapping {
	m.HostPort += uint16(i)
	m.HostPortEnd = m.HostPort
	m.Port += uint16(i)
	return m
}

// Any takes one port number for all of ms, which differ in their host address
// alone: the lowest free one of HostPort to HostPortEnd, or any free one where
// HostPort is 0. One number for all host addresses is Docker's rule
// (libnetwork's portmapperapi).
func (a *Allocator) Any(ms []Mapping, sandbox string) ([]lease, error) {
	if ms[0].HostPort == 0 {
		return a.ephemeral(ms, sandbox)
	}
	var first error
	for p := int(ms[0].HostPort); p <= int(ms[0].HostPortEnd); p++ {
		leases, err := a.same(ms, uint16(p), sandbox)
		if err == nil {
			return leases, nil
		}
		if !errors.Is(err, ErrPortInUse) {
			return nil, err
		}
		if first == nil {
			first = err
		}
	}
	if ms[0].HostPort == ms[0].HostPortEnd {
		return nil, first
	}
	return nil, &noneFreeError{ms[0], first}
}

// same takes one number for all of ms, or none.
func (a *Allocator) same(ms []Mapping, port uint16, sandbox string) ([]lease, error) {
	var all []lease
	for _, m := range ms {
		m.HostPort, m.HostPortEnd = port, port
		leases, err := a.Exact(m, sandbox)
		if err != nil {
			return nil, join(err, a.Release(all, sandbox))
		}
		all = append(all, leases...)
	}
	return all, nil
}

// ephemeral goes round the ephemeral range, from where it was last time: a port
// that was just given back is the last to be handed out again.
func (a *Allocator) ephemeral(ms []Mapping, sandbox string) ([]lease, error) {
	r, reserved := ephemeralPorts(a.sysctlDir)
	a.mu.Lock()
	next := a.after + 1
	a.mu.Unlock()
	if !r.has(next) {
		next = r.first
	}
	for range int(r.last) - int(r.first) + 1 {
		port := next
		if next++; !r.has(next) {
			next = r.first
		}
		if inAny(reserved, port) {
			continue
		}
		leases, err := a.same(ms, port, sandbox)
		if errors.Is(err, ErrPortInUse) {
			continue
		}
		if err != nil {
			return nil, err
		}
		a.mu.Lock()
		a.after = port
		a.mu.Unlock()
		return leases, nil
	}
	return nil, fmt.Errorf("%w: no %s port of the ephemeral range %d-%d is free (net.ipv4.ip_local_port_range without ip_local_reserved_ports)",
		ErrPortInUse, a.proto, r.first, r.last)
}

func inAny(rs []portRange, p uint16) bool {
	for _, r := range rs {
		if r.has(p) {
			return true
		}
	}
	return false
}

// Release gives leases back.
func (a *Allocator) Release(leases []lease, sandbox string) error {
	err := closeLeases(leases)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range leases {
		a.held.remove(l.Mapping, sandbox)
	}
	return err
}

// bindError says what to do about an errno of bind(2).
func (a *Allocator) bindError(m Mapping, port uint16, more int, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return &conflictError{mapping: m, port: port, addr: m.HostIP, process: true, more: more}
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("publish %s: host address %s is not an address of this host (%w); publish on one that is: -p %s",
			m, m.HostIP, err, m.notation(hostAddress(m.HostIP)))
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("publish %s: bind %s port %d (below net.ipv4.ip_unprivileged_port_start? CAP_NET_BIND_SERVICE is missing): %w", m, m.Proto, port, err)
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("publish %s: it takes %d open files, and the limit of this process (%s) leaves fewer; raise it (systemd: LimitNOFILE=, for a managed plugin that of the engine): %w",
			m, m.Len(), fileLimit(), err)
	}
	return fmt.Errorf("publish %s: bind %s port %d: %w", m, m.Proto, port, err)
}

func fileLimit() string {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return err.Error()
	}
	return strconv.FormatUint(r.Cur, 10)
}
