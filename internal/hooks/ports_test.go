package hooks

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPrefixesAreTheRange(t *testing.T) {
	tests := []struct {
		first, last uint16
		want        int
	}{
		{53, 53, 1}, {0x8000, 0xffff, 1}, {1, 65535, 16}, {10000, 19999, 10}, {49152, 65535, 1}, {65535, 65535, 1}, {1, 65534, 30}, {7, 8, 2},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.first, "-", tt.last), func(t *testing.T) {
			keys := ports{17, netip.IPv6Unspecified(), tt.first, tt.last}.prefixes()
			require.Len(t, keys, tt.want)
			next := int(tt.first)
			for _, k := range keys {
				at := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, k.Port)))
				require.Equal(t, next, at)
				next += 1 << (keyBits - k.Prefixlen)
			}
			require.Equal(t, int(tt.last)+1, next)
		})
	}
}
