package bpfhost

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestPortBlocks(t *testing.T) {
	for _, r := range []struct {
		first, last uint16
		blocks      int
	}{{0, 65535, 1}, {1, 65535, 16}, {53, 53, 1}, {10000, 19999, 10}, {65535, 65535, 1}, {49152, 65535, 1}, {1, 2, 2}} {
		n, next := 0, int(r.first)
		for at, free := range PortBlocks(r.first, r.last) {
			assert.Equal(t, next, int(at), "%v", r)
			assert.Zero(t, int(at)%(1<<free), "%v: a block begins at a multiple of its size", r)
			next += 1 << free
			n++
		}
		assert.Equal(t, int(r.last)+1, next, "%v", r)
		assert.Equal(t, r.blocks, n, "%v", r)
	}
	for range PortBlocks(1, 65535) {
		break
	}
}
