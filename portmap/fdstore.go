package portmap

// FDStore keeps the sockets of reserved ports open while no daemon runs, for the
// one that comes next: systemd's file descriptor store. Package systemd has one; a
// Publisher does without where there is none.
//
// What reaches a stored socket waits: TCP clients in the listener's queue,
// datagrams in the socket's. A port that nobody serves has its drop-all filter
// meanwhile.
type FDStore interface {
	// Inherited are the sockets that an earlier process left. They are the
	// store's: whoever wants one makes a copy.
	Inherited() []StoredSocket
	// Put stores sockets, of which some may be in the store, copies of inherited
	// ones among them. It must neither wait nor fail.
	Put(sockets []StoredSocket)
	// Remove returns when the store does not hold sockets any more, which may be
	// closed, and need not be in it.
	Remove(sockets []StoredSocket)
	// Settle removes those inherited sockets of which no copy was put.
	Settle()
}

// StoredSocket lends its file descriptor.
type StoredSocket = interface {
	Control(do func(fd uintptr)) error
}

// Control calls do with the socket's file descriptor, which do must not close. A
// Socket without one does not.
func (s *Socket) Control(do func(fd uintptr)) error {
	if s.sctp >= 0 {
		do(uintptr(s.sctp))
		return nil
	}
	return s.control(func(fd int) error {
		do(uintptr(fd))
		return nil
	})
}

// sockets are those by which ports are held.
func sockets(ports []*hostPort) (all []StoredSocket) {
	for _, port := range ports {
		if port.held && !port.parked && port.block == nil {
			all = append(all, port.Socket)
		}
	}
	return all
}

// put has the store keep what s holds.
func (p *Publisher) put(s *sandbox) {
	if p.cfg.FDStore != nil && len(s.ports) > 0 {
		p.cfg.FDStore.Put(sockets(s.ports))
	}
}

// unput has the store let go of sockets that were closed.
func (p *Publisher) unput(closed []StoredSocket) {
	if p.cfg.FDStore != nil && len(closed) > 0 {
		p.cfg.FDStore.Remove(closed)
	}
}
