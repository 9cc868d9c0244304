package store

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// laterMigrations are those of a later program, whose schema 2 calls "mac" what
// was "hw" in schema 1, and whose schema 3 has no "legacy".
var laterMigrations = []migration{
	func(body []byte) ([]byte, error) {
		return bytes.ReplaceAll(body, []byte(`"hw":`), []byte(`"mac":`)), nil
	},
	func(body []byte) ([]byte, error) {
		if bytes.Contains(body, []byte("impossible")) {
			return nil, errors.New("no way")
		}
		return bytes.ReplaceAll(body, []byte(`"legacy":[],`), nil), nil
	},
}

func sealed(schema int, body string) []byte {
	return slices.Concat(headerLine(schema, []byte(body)), []byte("\n"+body))
}

func TestMigrations(t *testing.T) {
	want := contents{Endpoints: []Endpoint{{ID: "e", Network: "n", MAC: "02:42:ac:14:00:02"}}}
	for name, file := range map[string][]byte{
		"from 1": sealed(1, `{"legacy":[],"endpoints":[{"id":"e","network":"n","hw":"02:42:ac:14:00:02"}]}`),
		"from 2": sealed(2, `{"legacy":[],"endpoints":[{"id":"e","network":"n","mac":"02:42:ac:14:00:02"}]}`),
		"from 3": sealed(3, `{"endpoints":[{"id":"e","network":"n","mac":"02:42:ac:14:00:02"}]}`),
	} {
		t.Run(name, func(t *testing.T) {
			dir := dirWith(t, file)
			s, err := open(folder{dir: dir}, laterMigrations, nil)
			require.NoError(t, err)
			require.Equal(t, want, contentsOf(s))
			require.NoError(t, s.DeleteEndpoint("absent"))
			kept, err := os.ReadFile(filepath.Join(dir, stateName))
			require.NoError(t, err)
			require.Equal(t, string(file), string(kept), "written before there was a change")

			require.NoError(t, s.PutNetwork(network("n")))
			require.NoError(t, s.Close())
			_, err = Open(dir, nil)
			require.ErrorIs(t, err, ErrNewer)
			require.ErrorContains(t, err, "schema 3, this program's is 1")
			s, err = open(folder{dir: dir}, laterMigrations, nil)
			require.NoError(t, err)
			require.Len(t, s.Networks(), 1)
			require.Equal(t, want.Endpoints, s.Endpoints())
			require.NoError(t, s.Close())
		})
	}
}

// A good file is not set aside for a fault of the program.
func TestFailedMigrationRefuses(t *testing.T) {
	for body, want := range map[string]string{
		`{"legacy":"impossible"}`:         "migrate from schema 2 to 3: no way",
		`{"legacy":[0],"endpoints":[]}`:   `migrate from schema 1 to 3: result: json: unknown field "legacy"`,
		`{"legacy":[],"endpoints":["e"]}`: "migrate from schema 1 to 3: result: damaged: ",
	} {
		dir := dirWith(t, sealed(1, body))
		_, err := open(folder{dir: dir}, laterMigrations, nil)
		require.ErrorContains(t, err, want)
		require.NotErrorIs(t, err, ErrNewer)
		kept, err := os.ReadFile(filepath.Join(dir, stateName))
		require.NoError(t, err)
		require.Equal(t, string(sealed(1, body)), string(kept))
		require.Equal(t, []string{stateName}, names(t, dir))
	}
}

// testdata/schemaN.json is a file of schema N with every field in it. Each must
// load for ever, and once N is released its file must not change. If the newest
// is not what this program writes, the records have changed: see Versions in
// the package comment.
func TestEverySchemaLoads(t *testing.T) {
	var c contents
	fill(t, reflect.ValueOf(&c).Elem())
	c.Networks, c.Endpoints, c.Sysctls = c.Networks[:1], c.Endpoints[:1], c.Sysctls[:1]
	st, err := newState(c)
	require.NoError(t, err)
	newest := schemaAfter(migrations)
	want, err := encode(st, newest)
	require.NoError(t, err)
	if *update {
		require.NoError(t, os.WriteFile(schemaFile(newest), want, 0o644))
	}

	for schema := 1; schema <= newest; schema++ {
		data, err := os.ReadFile(schemaFile(schema))
		require.NoError(t, err)
		s := openStore(t, dirWith(t, data))
		require.Empty(t, s.Damaged())
		require.Len(t, s.Networks(), 1)
		require.Len(t, s.Endpoints(), 1)
		require.Len(t, s.Sysctls(), 1)
		if schema == newest {
			require.Equal(t, string(want), string(data), "the records have changed and the schema has not")
		}
	}
}

var update = flag.Bool("update", false, "write testdata/schemaN.json of a schema that is not released yet")

func schemaFile(schema int) string { return fmt.Sprintf("testdata/schema%d.json", schema) }
