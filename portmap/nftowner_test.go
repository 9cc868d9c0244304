package portmap_test

import (
	"encoding/binary"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
	"github.com/portolan/portolan/portmap/portmaptest"
)

// Flags of a table (include/uapi/linux/netfilter/nf_tables.h).
const tableOwner, tablePersist = 1 << 1, 1 << 2

// tableFlags are those of our table, as another socket sees it, or false where
// there is no table.
func tableFlags(t *testing.T) (flags uint32, found bool) {
	t.Helper()
	c, err := nftables.New()
	require.NoError(t, err)
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	require.NoError(t, err)
	for _, table := range tables {
		if table.Name == portmap.Table {
			// The library takes the number, which is big-endian, for a native one.
			return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, table.Flags)), true
		}
	}
	return 0, false
}

func published() portmap.Publication {
	return portmap.Publication{Target: target("e1", 2)}
}

func requireListed(t *testing.T, m portmap.Mapper, want ...string) {
	t.Helper()
	pubs, err := m.List()
	require.NoError(t, err)
	var got []string
	for _, p := range pubs {
		got = append(got, p.Endpoint+" "+strings.Join(texts(p.Mappings), " "))
	}
	require.ElementsMatch(t, want, got)
}

// loaded is a mapper with one network and one endpoint.
func loaded(t *testing.T) *portmap.NFTables {
	t.Helper()
	m, err := portmap.NewNFTables(nil)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = m.Load(nil, nil), m.Close() }) // both errors, where the test has closed it
	require.NoError(t, m.Load([]portmap.Network{rigNet}, []portmap.Publication{loadedPublication(t)}))
	return m
}

// loadedPublication is what loaded has.
func loadedPublication(t *testing.T) portmap.Publication {
	t.Helper()
	p := published()
	p.Mappings = portmaptest.Mappings(t, "8080->80", "53->53/udp", "10000-10009->10000-10009/udp", "127.0.0.1:9000-9009->9000-9009")
	return p
}

// refused runs a command of another process that must not work.
func refused(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.Error(t, err, "%v", args)
	require.Contains(t, string(out), "Operation not permitted", "%v", args)
}

// TestTableOwner has other processes try to change or remove the table. It wants
// Linux 6.9.
func TestTableOwner(t *testing.T) {
	m := loaded(t)
	flags, found := tableFlags(t)
	require.True(t, found)
	require.Equal(t, uint32(tableOwner|tablePersist), flags)
	require.Contains(t, command(t, "nft", "list", "ruleset"), "table inet portolan {")
	require.Contains(t, command(t, "nft", "list", "set", "inet", "portolan", "bridges"), `"plbr0"`)

	command(t, "nft", "flush", "ruleset")
	refused(t, "nft", "delete", "table", "inet", "portolan")
	refused(t, "nft", "flush", "table", "inet", "portolan")
	refused(t, "nft", "add", "rule", "inet", "portolan", "guard", "accept")
	refused(t, "nft", "delete", "element", "inet", "portolan", "udp4-single", "{", "53", "}")
	requireLoaded(t, m)
	repaired, err := m.Check()
	require.NoError(t, err)
	require.False(t, repaired)

	other, err := portmap.NewNFTables(nil)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, other.Close()) })
	err = other.Load([]portmap.Network{rigNet}, nil)
	require.ErrorContains(t, err, "is another process its owner")
	require.Error(t, other.Load(nil, nil), "nor can it be taken away")
	require.Error(t, portmap.Cleanup(nil), "the table of a running daemon is its own")
	requireLoaded(t, m)
	require.NoError(t, m.Load(nil, nil))
	_, found = tableFlags(t)
	require.False(t, found)
}

func requireLoaded(t *testing.T, m portmap.Mapper) {
	t.Helper()
	requireListed(t, m, "e1 8080->80 127.0.0.1:9000-9009->9000-9009 53->53/udp 10000-10009->10000-10009/udp")
}

// TestTableOrphan outlives its owner and is taken over.
func TestTableOrphan(t *testing.T) {
	m := loaded(t)
	before := command(t, "nft", "-s", "list", "table", "inet", "portolan")
	require.NoError(t, m.Close())
	flags, found := tableFlags(t)
	require.True(t, found, "the table outlives its owner")
	require.NotZero(t, flags&tablePersist)
	require.Equal(t, chainsOnly(before), chainsOnly(command(t, "nft", "-s", "list", "table", "inet", "portolan")))

	m = loaded(t)
	requireLoaded(t, m)
	flags, _ = tableFlags(t)
	require.Equal(t, uint32(tableOwner|tablePersist), flags)
	refused(t, "nft", "delete", "table", "inet", "portolan")
	require.NoError(t, m.RemoveNetwork(rigNet.ID))
	_, found = tableFlags(t)
	require.False(t, found, "the last network takes the table along")
	require.NoError(t, m.AddNetwork(rigNet))
	require.NoError(t, m.Close())

	require.NoError(t, portmap.Cleanup(nil))
	_, found = tableFlags(t)
	require.False(t, found, "cleanup removes an orphan")
	require.NoError(t, portmap.Cleanup(nil), "again")
}

// chainsOnly leaves out the line of the table's flags, which nft writes by what
// it knows of them.
func chainsOnly(list string) string {
	var kept []string
	for line := range strings.Lines(list) {
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "\tflags") && !strings.HasPrefix(line, "table ") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// TestTableWithoutOwner is the mapper of kernels that know no owner: a table
// that is there and has none cannot be given one. What others do to it is
// repaired.
func TestTableWithoutOwner(t *testing.T) {
	command(t, "nft", "add", "table", "inet", "portolan")
	m := loaded(t)
	t.Cleanup(func() { assert.NoError(t, m.Load(nil, nil)) })
	flags, _ := tableFlags(t)
	require.Zero(t, flags)
	requireLoaded(t, m)
	for _, damage := range []string{
		"flush ruleset",
		"delete table inet portolan",
		"flush table inet portolan",
		"flush chain inet portolan filter-prerouting",
		"add rule inet portolan guard accept",
		"flush map inet portolan udp4",
		"delete element inet portolan udp4 { 10000-10009 }",
		"delete element inet portolan udp4-single { 53 }",
		"delete element inet portolan tcp4-single { 8080 }",
		"add element inet portolan udp4 { 9999 : 172.20.0.99 }",
		"flush map inet portolan to-bridge",
		"flush map inet portolan host-127.0.0.1-tcp4",
	} {
		t.Run(damage, func(t *testing.T) {
			repaired, err := m.Check()
			require.NoError(t, err)
			require.False(t, repaired)
			before := command(t, "nft", "-s", "list", "ruleset")
			command(t, append([]string{"nft"}, strings.Fields(damage)...)...)
			repaired, err = m.Check()
			require.NoError(t, err)
			require.True(t, repaired)
			requireLoaded(t, m)
			if _, found := tableFlags(t); found {
				after := command(t, "nft", "-s", "list", "ruleset")
				require.Len(t, chainsOnly(after), len(chainsOnly(before)))
			}
			repaired, err = m.Check()
			require.NoError(t, err)
			require.False(t, repaired, "nothing is left to repair")
		})
		if damage == "flush ruleset" || strings.HasPrefix(damage, "delete table") {
			// The new table has an owner; the others are for one without.
			require.NoError(t, m.Load(nil, nil))
			require.NoError(t, m.Close())
			command(t, "nft", "add", "table", "inet", "portolan")
			m = loaded(t)
		}
	}
}

// TestFlushedBeforeAChange: whoever flushes all rules right before a change has
// them back with it, and the change too.
func TestFlushedBeforeAChange(t *testing.T) {
	next := published()
	next.Mappings = portmaptest.Mappings(t, "198.51.100.1:80->80", "8080->81", "1-100->1001-1100/udp")
	was := "e1 8080->80 127.0.0.1:9000-9009->9000-9009 53->53/udp 10000-10009->10000-10009/udp"
	for name, tt := range map[string]struct {
		change func(*portmap.NFTables) error
		want   []string
	}{
		"Map":           {func(m *portmap.NFTables) error { return m.Map(next) }, []string{"e1 " + strings.Join(texts(next.Mappings), " ")}},
		"Unmap":         {func(m *portmap.NFTables) error { return m.Unmap("e1") }, nil},
		"AddNetwork":    {func(m *portmap.NFTables) error { return m.AddNetwork(portmap.Network{ID: "n2", Bridge: "plbr1"}) }, []string{was}},
		"RemoveNetwork": {func(m *portmap.NFTables) error { return m.RemoveNetwork(rigNet.ID) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			command(t, "nft", "add", "table", "inet", "portolan")
			m := loaded(t)
			command(t, "nft", "delete", "table", "inet", "portolan")
			require.NoError(t, tt.change(m))
			_, found := tableFlags(t)
			require.Equal(t, name != "RemoveNetwork", found)
			if found {
				requireListed(t, m, tt.want...)
			}
			repaired, err := m.Check()
			require.NoError(t, err)
			require.False(t, repaired, "nothing is left to repair")
		})
	}
}

// TestFlushedBeforeNoChange: a change of nothing makes no transaction, and the
// one of somebody else is not taken for it.
func TestFlushedBeforeNoChange(t *testing.T) {
	command(t, "nft", "add", "table", "inet", "portolan")
	m := loaded(t)
	repaired, err := m.Check()
	require.NoError(t, err)
	require.False(t, repaired)
	command(t, "nft", "delete", "table", "inet", "portolan")
	require.NoError(t, m.Map(loadedPublication(t)))
	repaired, err = m.Check()
	require.NoError(t, err)
	require.True(t, repaired)
	_, found := tableFlags(t)
	require.True(t, found)
}

// TestFailedTransaction has another process own the table, which refuses every
// change. Afterwards the socket is in step, and the mirror is what the kernel had,
// but for the endpoint that was to leave.
func TestFailedTransaction(t *testing.T) {
	command(t, "nft", "add", "table", "inet", "portolan")
	m := loaded(t)
	second := portmap.Publication{Target: target("e2", 3), Mappings: portmaptest.Mappings(t, "81->81")}
	require.NoError(t, m.Map(second))
	command(t, "nft", "delete", "table", "inet", "portolan")
	other, err := portmap.NewNFTables(nil)
	require.NoError(t, err)
	require.NoError(t, other.Load([]portmap.Network{rigNet}, nil))
	next := published()
	next.Mappings = portmaptest.Mappings(t, "198.51.100.1:80->80", "8080->81", "1-100->1001-1100/udp")
	require.Error(t, m.Map(next))
	require.Error(t, m.AddNetwork(portmap.Network{ID: "n2", Bridge: "plbr1"}))
	require.Error(t, m.RemoveNetwork(rigNet.ID))
	require.Error(t, m.Unmap("e2"))
	require.NoError(t, other.Load(nil, nil))
	require.NoError(t, other.Close())
	repaired, err := m.Check()
	require.NoError(t, err)
	require.True(t, repaired)
	requireLoaded(t, m)
	require.NoError(t, m.Map(next))
	requireListed(t, m, "e1 "+strings.Join(texts(next.Mappings), " "))
}

func TestOpenMapper(t *testing.T) {
	for name, want := range map[string]string{"": portmap.MapperNFTables, portmap.MapperAuto: portmap.MapperNFTables,
		portmap.MapperNFTables: portmap.MapperNFTables, portmap.MapperIPTables: portmap.MapperIPTables} {
		m, chosen, reason, err := portmap.OpenMapper(name, portmap.MapperConfig{})
		require.NoError(t, err)
		require.Equal(t, want, chosen, "%q", name)
		require.NotEmpty(t, reason)
		require.NoError(t, m.Close())
	}
	_, _, _, err := portmap.OpenMapper("ebtables", portmap.MapperConfig{})
	require.EqualError(t, err, `unknown mapper "ebtables"; known are auto, nftables, iptables`)
}

// command runs a program of another process, and wants it to succeed.
func command(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s: %s", strings.Join(args, " "), out)
	return string(out)
}
