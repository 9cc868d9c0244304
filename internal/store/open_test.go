package store

import (
	"bytes"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// sample is a small state file and what is in it.
func sample(t testing.TB) ([]byte, contents) {
	t.Helper()
	s := openStore(t, t.TempDir())
	require.NoError(t, s.PutNetwork(network("n")))
	require.NoError(t, s.PutEndpoint(endpoint("e", "n")))
	require.NoError(t, s.PutSysctl(Sysctl{"ipv4/ip_forward", "0", "1"}))
	data, err := os.ReadFile(filepath.Join(s.Dir(), stateName))
	require.NoError(t, err)
	require.NoError(t, s.Close())
	return data, contentsOf(s)
}

// dirWith is a state directory with that state file.
func dirWith(t testing.TB, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, stateName), data, 0o600))
	return dir
}

// names are the files in dir, but for the lock.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		if e.Name() != lockName {
			names = append(names, e.Name())
		}
	}
	return names
}

// requireSetAside opens dir, whose state file data is damaged.
func requireSetAside(t testing.TB, dir string, data []byte) {
	t.Helper()
	s, err := Open(dir, nil)
	require.NoError(t, err)
	defer s.Close()
	require.Empty(t, contentsOf(s))
	require.NotEmpty(t, s.Damaged(), "loaded without a word")
	kept, err := os.ReadFile(s.Damaged())
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, kept), "%s is not what was set aside", s.Damaged())
	require.Equal(t, []string{filepath.Base(s.Damaged())}, names(t, dir))
}

func TestFirstStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "portolan")
	s := openStore(t, dir)
	require.Empty(t, contentsOf(s))
	require.Empty(t, s.Damaged())
	require.Equal(t, dir, s.Dir())
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, fs.ModeDir|0o700, info.Mode())
	require.Empty(t, names(t, dir))
}

func TestCutAtEveryByte(t *testing.T) {
	data, want := sample(t)
	for n := range len(data) {
		requireSetAside(t, dirWith(t, data[:n]), data[:n])
	}
	s := openStore(t, dirWith(t, data))
	require.Empty(t, s.Damaged())
	require.Equal(t, want, contentsOf(s))
}

func TestEveryBitFlipped(t *testing.T) {
	data, _ := sample(t)
	dir := t.TempDir()
	for i := range data {
		for bit := range 8 {
			flipped := slices.Clone(data)
			flipped[i] ^= 1 << bit
			_, err := decode(flipped, migrations)
			require.ErrorIs(t, err, errDamaged, "byte %d, bit %d", i, bit)
		}
		// The whole way for one bit of each byte: it is slower.
		flipped := slices.Clone(data)
		flipped[i] ^= 1 << (i % 8)
		require.NoError(t, os.WriteFile(filepath.Join(dir, stateName), flipped, 0o600))
		requireSetAside(t, dir, flipped)
		require.NoError(t, Remove(dir))
		require.NoError(t, os.Mkdir(dir, 0o700))
	}
}

func TestDamaged(t *testing.T) {
	good, _ := sample(t)
	tests := []struct {
		name string
		data []byte
		want string // of the warning
	}{
		{"empty file", []byte{}, "empty file"},
		{"zeros, as after a power cut", make([]byte, 4096), "nothing after the header"},
		{"another format", []byte("{\"format\":\"x\",\"schema\":1}\n{}\n"), `format \"x\"`},
		{"schema 0", sealed(0, "{}"), "schema 0"},
		{"newer, but the checksum is wrong", bytes.Replace(good, []byte(`"schema":1`), []byte(`"schema":7`), 1), "checksum mismatch"},
		{"more at the end", append(slices.Clone(good), '\n'), "checksum mismatch"},
		{"header written otherwise", bytes.Replace(good, []byte(`{"format"`), []byte(`{ "format"`), 1), "checksum mismatch"},
		{"not JSON", sealed(1, "networks"), "invalid character"},
		{"not an object", sealed(1, "[]"), "cannot unmarshal"},
		{"two values", sealed(1, "{}{}"), "something after the end"},
		{"a record of a wrong type", sealed(1, `{"endpoints":[{"id":7}]}`), "cannot unmarshal"},
		{"an address that is none", sealed(1, `{"networks":[{"id":"n","snat4":"x"}]}`), "unable to parse IP"},
		{"no ID", sealed(1, `{"networks":[{"bridge":"br0"}]}`), "networks: no ID"},
		{"an ID twice", sealed(1, `{"endpoints":[{"id":"b"},{"id":"a"},{"id":"b"}]}`), `endpoints: two of ID \"b\"`},
		{"a path twice", sealed(1, `{"sysctls":[{"path":"p"},{"path":"p"}]}`), `sysctls: two of \"p\"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := dirWith(t, tt.data)
			var out bytes.Buffer
			s, err := Open(dir, slog.New(slog.NewTextHandler(&out, nil)))
			require.NoError(t, err)
			defer s.Close()
			require.Contains(t, out.String(), "level=WARN")
			require.Contains(t, out.String(), s.Damaged())
			require.Contains(t, out.String(), tt.want)
			require.NoError(t, s.Close())
			require.NoError(t, os.Rename(s.Damaged(), filepath.Join(dir, stateName)))
			requireSetAside(t, dir, tt.data)
		})
	}
}

func TestSetAsideSpareTheOthers(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"first", "second", "third"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, stateName), []byte(text), 0o600))
		s, err := Open(dir, nil)
		require.NoError(t, err)
		require.NoError(t, s.PutNetwork(network("n")))
		require.NoError(t, s.Close())
	}
	var texts []string
	for _, name := range names(t, dir) {
		if name == stateName {
			continue
		}
		require.Regexp(t, `^state\.json\.damaged-\d{8}T\d{6}Z(-\d)?$`, name)
		data, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		texts = append(texts, string(data))
	}
	require.ElementsMatch(t, []string{"first", "second", "third"}, texts)
}

func TestLeftoverOfACrash(t *testing.T) {
	data, want := sample(t)
	dir := dirWith(t, data)
	require.NoError(t, os.WriteFile(filepath.Join(dir, newName), []byte("half of a fi"), 0o644))
	s := openStore(t, dir)
	require.Equal(t, want, contentsOf(s))
	require.NoError(t, os.WriteFile(filepath.Join(dir, newName), data, 0o444))
	require.NoError(t, s.PutNetwork(network("n2")))
	require.Equal(t, []string{stateName}, names(t, dir))
	s = reopen(t, s)
	require.Len(t, s.Networks(), 2)
}

func TestRefusesANewerFile(t *testing.T) {
	newer := sealed(7, `{"networks":{"by":"another rule"},"volumes":[]}`)
	unknown := sealed(1, `{"networks":[{"id":"n","bridge":"br0","colour":"red"}],"endpoints":[],"sysctls":[]}`)
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"newer schema", newer, "schema 7, this program's is 1"},
		{"field that is not known", unknown, `unknown field "colour"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := dirWith(t, tt.data)
			_, err := Open(dir, nil)
			require.ErrorIs(t, err, ErrNewer)
			require.ErrorContains(t, err, filepath.Join(dir, stateName)+": ")
			require.ErrorContains(t, err, tt.want)
			kept, err := os.ReadFile(filepath.Join(dir, stateName))
			require.NoError(t, err)
			require.Equal(t, tt.data, kept)
			require.Equal(t, []string{stateName}, names(t, dir))
			require.NoError(t, Remove(dir), "the lock was not released")
		})
	}
}

func TestRefusesWhatIsNoFile(t *testing.T) {
	good, _ := sample(t)
	tests := []struct {
		name string
		make func(path string) error
	}{
		{"directory", func(path string) error { return os.Mkdir(path, 0o700) }},
		{"FIFO", func(path string) error { return unix.Mkfifo(path, 0o600) }},
		{"link", func(path string) error {
			return os.Symlink(filepath.Join(dirWith(t, good), stateName), path)
		}},
		{"link to nowhere", func(path string) error { return os.Symlink("nowhere", path) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, stateName)
			require.NoError(t, tt.make(path))
			before, err := os.Lstat(path)
			require.NoError(t, err)
			_, err = Open(dir, nil)
			require.ErrorContains(t, err, "read state: ")
			after, err := os.Lstat(path)
			require.NoError(t, err)
			assert.True(t, os.SameFile(before, after))
			assert.Equal(t, []string{stateName}, names(t, dir))
		})
	}
}

// asNobody calls f without root's power over files.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() == 0 {
		runtime.LockOSThread() // the ID is the thread's
		defer runtime.UnlockOSThread()
		require.NoError(t, unix.Setfsuid(65534))
		defer func() { assert.NoError(t, unix.Setfsuid(0)) }()
	}
	f()
}

func TestRefusesWhatIsForbidden(t *testing.T) {
	tests := []struct {
		name             string
		dir, lock, state os.FileMode
		want             string
	}{
		{"directory", 0, 0o666, 0o666, "lock state directory "},
		{"lock", 0o700, 0, 0o666, "lock state directory "},
		{"state", 0o700, 0o666, 0, "read state: "},
		{"writing", 0o555, 0o666, 0o666, "write to state directory: "},
	}
	good, _ := sample(t)
	for _, tt := range tests {
		for _, data := range [][]byte{good, []byte("damaged")} {
			t.Run(tt.name, func(t *testing.T) {
				dir := dirWith(t, data)
				require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755)) // not what is tested
				path, lock := filepath.Join(dir, stateName), filepath.Join(dir, lockName)
				require.NoError(t, os.WriteFile(lock, nil, 0o600))
				require.NoError(t, os.Chmod(path, tt.state))
				require.NoError(t, os.Chmod(lock, tt.lock))
				require.NoError(t, os.Chmod(dir, tt.dir))
				require.NoError(t, os.Chown(dir, 65534, 0))
				var err error
				asNobody(t, func() { _, err = Open(dir, nil) })
				require.ErrorIs(t, err, unix.EACCES)
				require.ErrorContains(t, err, tt.want)

				require.NoError(t, os.Chmod(dir, 0o700))
				require.NoError(t, os.Chmod(path, 0o600))
				kept, err := os.ReadFile(path)
				require.NoError(t, err)
				require.Equal(t, data, kept)
				require.Equal(t, []string{stateName}, names(t, dir))
			})
		}
	}
}

func TestRefusesADirectoryThatIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err := Open(path, nil)
	require.ErrorIs(t, err, unix.ENOTDIR)
	require.ErrorContains(t, err, path)
}

func TestRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "portolan")
	require.NoError(t, Remove(dir), "absent")

	s := openStore(t, dir)
	require.NoError(t, s.PutNetwork(network("n")))
	before := names(t, dir)
	require.ErrorIs(t, Remove(dir), ErrLocked)
	require.Equal(t, before, names(t, dir))
	require.NoError(t, s.Close())

	for _, name := range []string{newName, damagedPrefix + "20260101T000000Z", damagedPrefix + "20260101T000000Z-2"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	stranger := filepath.Join(dir, "state.json.bak")
	require.NoError(t, os.WriteFile(stranger, nil, 0o600))
	require.NoError(t, Remove(dir))
	require.Equal(t, []string{"state.json.bak"}, names(t, dir))
	require.NoFileExists(t, filepath.Join(dir, lockName))

	require.NoError(t, os.Remove(stranger))
	link := dir + "-link"
	require.NoError(t, os.Symlink(dir, link))
	require.NoError(t, Remove(link))
	require.FileExists(t, link, "a link is not ours")
	require.NoError(t, Remove(dir))
	require.NoDirExists(t, dir)
}

// Whoever can write there can say what the daemon is to make.
func TestRefusesADirectoryForEverybody(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o777))
	_, err := Open(dir, nil)
	require.ErrorContains(t, err, "every user may write to "+dir)
	require.NoError(t, os.Chmod(dir, 0o775))
	s, err := Open(dir, nil)
	require.NoError(t, err)
	require.NoError(t, s.Close())
}
