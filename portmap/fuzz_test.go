package portmap

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzIPTablesRule reads any line as a rule of one of our chains, as iptables -S
// prints them: others may have written there.
func FuzzIPTablesRule(f *testing.F) {
	for _, rule := range []string{
		`-p udp -m udp --dport 53 -m comment --comment 3f2a91c04b7e -j DNAT --to-destination 172.20.0.2`,
		`-d 127.0.0.1/32 -p tcp -m tcp --dport 8000:8010 -m comment --comment "e 1" -j DNAT --to-destination 172.20.0.2:80-90/8000`,
		`-p sctp -m sctp --dport 5000 -m comment --comment e -j DNAT --to-destination [fd00::2]:5001`,
		`-p udp --dport 70000`, `--to-destination :`, `-p`, `-d x -p 17`,
	} {
		f.Add(true, rule)
		f.Add(false, rule)
	}
	f.Fuzz(func(t *testing.T, is4 bool, rule string) {
		pubs := map[string]*Publication{}
		if err := iptParseInto(pubs, is4, rule); err != nil {
			require.Empty(t, pubs)
			return
		}
		require.Len(t, pubs, 1)
		for _, p := range pubs {
			require.Len(t, iptMergeFamilies(p.Mappings), 1)
		}
	})
}
