package bpfhost

import (
	"encoding/binary"
	"iter"
	"math/bits"
)

// PortBlocks parts the ports from first to last into the fewest blocks that an
// LPM trie has one key for: the first port of each, and how many of its low bits
// are free. 10000 to 19999 are 10.
func PortBlocks(first, last uint16) iter.Seq2[uint16, int] {
	return func(yield func(uint16, int) bool) {
		for at := uint32(first); at <= uint32(last); {
			// As many ports as share the bits before, and are left.
			free := min(bits.TrailingZeros16(uint16(at)), bits.Len32(uint32(last)-at+1)-1)
			if !yield(uint16(at), free) {
				return
			}
			at += 1 << free
		}
	}
}

// NetOrder is a port as it lies in memory in network byte order.
func NetOrder(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}
