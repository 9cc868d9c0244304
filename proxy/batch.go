package proxy

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// slots is how many datagrams are carried at a time: many enough that the
	// calls for each batch hardly count, few enough that nobody waits long.
	slots = 128
	// slotSize has room for the largest datagram. The five cache lines more keep
	// the slots' beginnings apart in the cache: at a power of two all of them
	// would share a few lines, and small datagrams touch only the beginnings.
	slotSize = 1<<16 + 5*64
	// oobSize has room for IP_PKTINFO, 32 bytes, and IPV6_PKTINFO, 40.
	oobSize = 128
)

// batch has room for the datagrams of one round, and what is known of each.
type batch struct {
	mem    []byte // of all slots; pages that no datagram has reached are not there
	size   [slots]int
	next   [slots]int16    // in a chain
	owner  [slots]*flow    // of a reply
	names  [slots]sockname // of a request: who sent it
	oobs   [slots][oobSize]byte
	iovs   [slots]unix.Iovec
	asking [slots]mmsghdr // to receive requests: with names and oobs
	used   int            // of asking, which the kernel has written to
	plain  [slots]mmsghdr // to receive replies
}

func newBatch() (*batch, error) {
	mem, err := unix.Mmap(-1, 0, slots*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map buffers: %w", err)
	}
	b := &batch{mem: mem, used: slots}
	for i := range b.iovs {
		b.iovs[i].Base = &b.slot(i)[0]
		b.iovs[i].SetLen(1 << 16)
		for _, h := range []*mmsghdr{&b.asking[i], &b.plain[i]} {
			h.Iov = &b.iovs[i]
			h.SetIovlen(1)
		}
		b.asking[i].Name = &b.names[i][0]
		b.asking[i].Control = &b.oobs[i][0]
	}
	return b, nil
}

// free leaves no pointer to the slots behind: their place may become the heap's,
// where the garbage collector wonders at pointers to nothing.
func (b *batch) free() {
	mem := b.mem
	*b = batch{}
	_ = unix.Munmap(mem)
}

// forget gives the memory of the slots back until it is used again.
func (b *batch) forget() { _ = unix.Madvise(b.mem, unix.MADV_DONTNEED) }

func (b *batch) slot(i int) []byte { return b.mem[i*slotSize:][:slotSize] }

func (b *batch) data(i int) []byte { return b.slot(i)[:b.size[i]] }

func (b *batch) oob(i int) []byte { return b.oobs[i][:b.asking[i].Controllen] }

// sender is whom the request in a slot came from.
func (b *batch) sender(i int) address {
	return address{name: b.names[i], length: b.asking[i].Namelen}
}

// receiveRequests fills the batch from a frontend.
func (b *batch) receiveRequests(fd int) (int, error) {
	for i := range b.used {
		b.asking[i].Namelen = uint32(len(b.names[i]))
		b.asking[i].SetControllen(oobSize)
	}
	n, err := recvmmsg(fd, b.asking[:])
	b.used = min(n+1, slots) // an attempt that finds nothing writes too
	for i := range n {
		b.size[i] = int(b.asking[i].length)
	}
	return n, err
}

// receiveReplies fills slots from first on, n at most, from a flow's socket.
func (b *batch) receiveReplies(fd, first, n int) (int, error) {
	n, err := recvmmsg(fd, b.plain[first:first+n])
	for i := first; i < first+n; i++ {
		b.size[i] = int(b.plain[i].length)
	}
	return n, err
}

// chain is slots of a batch that leave by the same socket, in order. The zero
// chain is empty.
type chain struct{ first, last int16 } // slots, counted from 1

// add is true for the first.
func (c *chain) add(b *batch, slot int) bool {
	i := int16(slot + 1)
	b.next[slot] = 0
	empty := c.first == 0
	if empty {
		c.first = i
	} else {
		b.next[c.last-1] = i
	}
	c.last = i
	return empty
}

// each calls f for every slot, and empties the chain.
func (c *chain) each(b *batch, f func(slot int)) {
	i := c.first
	*c = chain{}
	for i != 0 {
		slot := int(i - 1)
		i = b.next[slot]
		f(slot)
	}
}
