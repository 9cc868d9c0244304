package store

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/portmap"
)

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, nil)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	return s
}

// reopen closes s and reads its directory again.
func reopen(t testing.TB, s *Store) *Store {
	t.Helper()
	require.NoError(t, s.Close())
	s = openStore(t, s.Dir())
	require.Empty(t, s.Damaged())
	return s
}

func network(id string) Network {
	return Network{Network: portmap.Network{ID: id, Bridge: "br-" + id}, Phase: Done}
}

func endpoint(id, network string) Endpoint {
	return Endpoint{
		ID: id, Network: network, Phase: Intent,
		Created: time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC),
		Addr4:   netip.MustParsePrefix("172.20.0.2/16"),
		MAC:     "02:42:ac:14:00:02",
		Mappings: []portmap.Mapping{
			{Proto: portmap.UDP, HostPort: 10000, HostPortEnd: 10999, Port: 10000, Origin: portmap.OriginEngine},
		},
	}
}

// contentsOf is all that s answers, nil where there is nothing.
func contentsOf(s *Store) contents {
	var c contents
	c.Networks = append(c.Networks, s.Networks()...)
	c.Endpoints = append(c.Endpoints, s.Endpoints()...)
	c.Sysctls = append(c.Sysctls, s.Sysctls()...)
	return c
}

// fill sets every field of v, at any depth, to something that is not zero, so
// that the tests of a record need not know which fields it has.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Type() {
	case reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC)))
		return
	case reflect.TypeFor[netip.Addr]():
		v.Set(reflect.ValueOf(netip.MustParseAddr("fe80::1%eth0")))
		return
	case reflect.TypeFor[netip.Prefix]():
		v.Set(reflect.ValueOf(netip.MustParsePrefix("fd20::1/64")))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(`a "text" <&> ` + "\u2028ü")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1500)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		v.SetUint(132)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	default:
		t.Fatalf("fill does not know %s", v.Type())
	}
}

// scribble overwrites what v points to, so that whoever shares it notices.
func scribble(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Elem().SetZero()
	case reflect.Slice:
		for i := range v.Len() {
			v.Index(i).SetZero()
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				scribble(v.Field(i))
			}
		}
	}
}

func TestEveryFieldSurvives(t *testing.T) {
	var n Network
	var e Endpoint
	var c Sysctl
	fill(t, reflect.ValueOf(&n).Elem())
	fill(t, reflect.ValueOf(&e).Elem())
	fill(t, reflect.ValueOf(&c).Elem())
	want := contents{Networks: []Network{n}, Endpoints: []Endpoint{e}, Sysctls: []Sysctl{c}}

	s := openStore(t, t.TempDir())
	require.NoError(t, s.PutNetwork(n))
	require.NoError(t, s.PutEndpoint(e))
	require.NoError(t, s.PutSysctl(c))
	require.Equal(t, want, contentsOf(s))
	s = reopen(t, s)
	require.Equal(t, want, contentsOf(s))
}

func TestZeroFieldsSurvive(t *testing.T) {
	s := openStore(t, t.TempDir())
	require.NoError(t, s.PutNetwork(Network{Network: portmap.Network{ID: "n"}}))
	require.NoError(t, s.PutEndpoint(Endpoint{ID: "e"}))
	want := contents{
		Networks:  []Network{{Network: portmap.Network{ID: "n"}}},
		Endpoints: []Endpoint{{ID: "e"}},
	}
	require.Equal(t, want, contentsOf(s))
	require.Equal(t, want, contentsOf(reopen(t, s)))
}

// Memory must not know more than the disk: a zone, a monotonic clock, an empty
// slice that is not nil.
func TestMemoryIsWhatARestartFinds(t *testing.T) {
	s := openStore(t, t.TempDir())
	e := endpoint("e", "n")
	e.Created = time.Now().In(time.FixedZone("west", -3*3600))
	e.Mappings = []portmap.Mapping{}
	require.NoError(t, s.PutEndpoint(e))
	before, ok := s.Endpoint("e")
	require.True(t, ok)
	assert.True(t, e.Created.Equal(before.Created))
	after, ok := reopen(t, s).Endpoint("e")
	require.True(t, ok)
	require.Equal(t, before, after)
}

func TestCopies(t *testing.T) {
	var n Network
	var e Endpoint
	fill(t, reflect.ValueOf(&n).Elem())
	fill(t, reflect.ValueOf(&e).Elem())
	s := openStore(t, t.TempDir())
	require.NoError(t, s.PutNetwork(n))
	require.NoError(t, s.PutEndpoint(e))
	require.NoError(t, s.PutSysctl(Sysctl{Path: "p", Old: "0", New: "1"}))

	data, err := json.Marshal(contentsOf(s))
	require.NoError(t, err)
	var want contents
	require.NoError(t, json.Unmarshal(data, &want))

	scribble(reflect.ValueOf(&n).Elem())
	scribble(reflect.ValueOf(&e).Elem())
	require.Equal(t, want, contentsOf(s), "put keeps what belongs to the caller")

	gotN, _ := s.Network(n.ID)
	gotE, _ := s.Endpoint(e.ID)
	scribble(reflect.ValueOf(&gotN).Elem())
	scribble(reflect.ValueOf(&gotE).Elem())
	all := contentsOf(s)
	scribble(reflect.ValueOf(&all.Networks[0]).Elem())
	scribble(reflect.ValueOf(&all.Endpoints[0]).Elem())
	all.Sysctls[0].Old = "x"
	require.Equal(t, want, contentsOf(s), "a getter gives away what belongs to the store")
}

func TestSortedAndReplaced(t *testing.T) {
	s := openStore(t, t.TempDir())
	for _, id := range []string{"c", "a", "b", "a", "d", "0"} {
		require.NoError(t, s.PutNetwork(network(id)))
		require.NoError(t, s.PutEndpoint(endpoint(id, id)))
	}
	changed := endpoint("b", "b")
	changed.Phase = Done
	require.NoError(t, s.PutEndpoint(changed))
	for range 2 {
		var networks, endpoints []string
		for _, n := range s.Networks() {
			networks = append(networks, n.ID)
		}
		for _, e := range s.Endpoints() {
			endpoints = append(endpoints, e.ID)
		}
		require.Equal(t, []string{"0", "a", "b", "c", "d"}, networks)
		require.Equal(t, []string{"0", "a", "b", "c", "d"}, endpoints)
		got, ok := s.Endpoint("b")
		require.True(t, ok)
		require.Equal(t, changed, got)
		s = reopen(t, s)
	}
	_, ok := s.Network("bb")
	require.False(t, ok)
	_, ok = s.Endpoint("")
	require.False(t, ok)
}

func TestDelete(t *testing.T) {
	s := openStore(t, t.TempDir())
	for _, id := range []string{"n1", "n2"} {
		require.NoError(t, s.PutNetwork(network(id)))
		require.NoError(t, s.PutEndpoint(endpoint(id+"-a", id)))
		require.NoError(t, s.PutEndpoint(endpoint(id+"-b", id)))
	}
	require.NoError(t, s.DeleteNetwork("n1"))
	require.NoError(t, s.DeleteEndpoint("n2-a"))
	want := contents{Networks: []Network{network("n2")}, Endpoints: []Endpoint{endpoint("n2-b", "n2")}}
	require.Equal(t, want, contentsOf(s))
	require.Equal(t, want, contentsOf(reopen(t, s)))
}

func TestUpdateEndpoint(t *testing.T) {
	s := openStore(t, t.TempDir())
	ok, err := s.UpdateEndpoint("e", func(*Endpoint) { t.Error("called for no endpoint") })
	require.NoError(t, err)
	require.False(t, ok)

	want := endpoint("e", "n")
	require.NoError(t, s.PutEndpoint(want))
	want.Owner = &Owner{ContainerID: "c0ffee", ContainerName: "web"}
	want.Mappings[0].Port = 53
	ok, err = s.UpdateEndpoint("e", func(e *Endpoint) {
		e.Owner = &Owner{ContainerID: "c0ffee", ContainerName: "web"}
		e.Mappings[0].Port = 53
		e.ID = "another"
	})
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, []Endpoint{want}, s.Endpoints())
	require.Equal(t, []Endpoint{want}, reopen(t, s).Endpoints())
}

func TestSysctls(t *testing.T) {
	s := openStore(t, t.TempDir())
	require.NoError(t, s.PutSysctl(Sysctl{"ipv6/conf/all/forwarding", "0", "1"}))
	require.NoError(t, s.PutSysctl(Sysctl{"ipv4/ip_forward", "0", "1"}))
	require.NoError(t, s.PutSysctl(Sysctl{"ipv6/conf/all/forwarding", "1", "2"}))
	want := []Sysctl{{"ipv6/conf/all/forwarding", "0", "2"}, {"ipv4/ip_forward", "0", "1"}}
	require.Equal(t, want, s.Sysctls())
	s = reopen(t, s)
	require.Equal(t, want, s.Sysctls())
	require.NoError(t, s.DeleteSysctl("ipv6/conf/all/forwarding"))
	require.Equal(t, want[1:], s.Sysctls())
	require.Equal(t, want[1:], reopen(t, s).Sysctls())
}

// What cannot be read back must not get as far as the file.
func TestRefusedRecords(t *testing.T) {
	s := openStore(t, t.TempDir())
	require.NoError(t, s.PutEndpoint(endpoint("e", "n")))
	require.EqualError(t, s.PutNetwork(Network{}), "put network : no ID")
	require.EqualError(t, s.PutEndpoint(Endpoint{}), "put endpoint : no ID")
	require.EqualError(t, s.PutSysctl(Sysctl{}), "put sysctl: no path")
	require.ErrorContains(t, s.PutEndpoint(Endpoint{ID: "\xff"}), "not UTF-8")

	invalid := endpoint("e", "n")
	invalid.Addr4 = netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), 40)
	require.ErrorContains(t, s.PutEndpoint(invalid), "put endpoint e: ")
	ok, err := s.UpdateEndpoint("e", func(e *Endpoint) { *e = invalid })
	require.ErrorContains(t, err, "update endpoint e: ")
	require.True(t, ok)
	require.Equal(t, []Endpoint{endpoint("e", "n")}, s.Endpoints())
	require.Equal(t, []Endpoint{endpoint("e", "n")}, reopen(t, s).Endpoints())
}

func TestNothingChangedNothingWritten(t *testing.T) {
	s := openStore(t, t.TempDir())
	path := filepath.Join(s.Dir(), stateName)
	require.NoError(t, s.DeleteNetwork("n"))
	require.NoError(t, s.DeleteEndpoint("e"))
	require.NoError(t, s.DeleteSysctl("p"))
	require.NoFileExists(t, path)

	require.NoError(t, s.PutNetwork(network("n")))
	require.NoError(t, s.PutEndpoint(endpoint("e", "n")))
	require.NoError(t, s.PutSysctl(Sysctl{"p", "0", "1"}))
	before, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), before.Mode())

	require.NoError(t, s.PutNetwork(network("n")))
	require.NoError(t, s.PutEndpoint(endpoint("e", "n")))
	require.NoError(t, s.PutSysctl(Sysctl{"p", "7", "1"}))
	require.NoError(t, s.DeleteEndpoint("x"))
	_, err = s.UpdateEndpoint("e", func(*Endpoint) {})
	require.NoError(t, err)
	after, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after), "the file was replaced")
}

func TestClosed(t *testing.T) {
	s := openStore(t, t.TempDir())
	require.NoError(t, s.PutEndpoint(endpoint("e", "n")))
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.PutEndpoint(endpoint("f", "n")), os.ErrClosed)
	require.ErrorIs(t, s.DeleteEndpoint("e"), os.ErrClosed)
	require.Equal(t, []Endpoint{endpoint("e", "n")}, s.Endpoints())
}
