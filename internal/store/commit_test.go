package store

import (
	"errors"
	"fmt"
	"github.com/portolan/portolan/portmap"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// faults decides which steps of a write fail.
type faults struct {
	mu    sync.Mutex
	steps []string                // that were begun
	fail  func(step string) error // may be nil; called without mu
}

func (f *faults) before(step string) error {
	f.mu.Lock()
	f.steps = append(f.steps, step)
	fail := f.fail
	f.mu.Unlock()
	if fail == nil {
		return nil
	}
	return fail(step)
}

func (f *faults) set(fail func(step string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
	f.steps = nil
}

// count is how often step was begun since set.
func (f *faults) count(step string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, s := range f.steps {
		if s == step {
			n++
		}
	}
	return n
}

func openFaulty(t *testing.T) (*Store, *faults) {
	t.Helper()
	f := &faults{}
	s, err := open(folder{dir: t.TempDir(), before: f.before}, migrations, nil)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	return s, f
}

func failing(step string, err error) func(string) error {
	return func(s string) error {
		if s == step {
			return err
		}
		return nil
	}
}

func TestFailedWriteChangesNothing(t *testing.T) {
	for _, step := range []string{"create", "write", "sync", "rename", "syncdir"} {
		t.Run(step, func(t *testing.T) {
			s, f := openFaulty(t)
			require.NoError(t, s.PutNetwork(network("n")))
			require.NoError(t, s.PutEndpoint(endpoint("e", "n")))
			require.NoError(t, s.PutSysctl(Sysctl{"p", "0", "1"}))
			want := contentsOf(s)
			path := filepath.Join(s.Dir(), stateName)
			before, err := os.ReadFile(path)
			require.NoError(t, err)

			fail := func(what string, call func() error) {
				t.Helper()
				var once atomic.Bool // what was renamed can be put back
				f.set(func(s string) error {
					if s == step && once.CompareAndSwap(false, true) {
						return unix.ENOSPC
					}
					return nil
				})
				err := call()
				require.ErrorIs(t, err, unix.ENOSPC, what)
				require.ErrorContains(t, err, what)
				require.Equal(t, want, contentsOf(s), what)
				after, err := os.ReadFile(path)
				require.NoError(t, err)
				require.Equal(t, string(before), string(after), what)
				require.Equal(t, []string{stateName}, names(t, s.Dir()), what)
			}
			fail("put network m", func() error { return s.PutNetwork(network("m")) })
			fail("put endpoint f", func() error { return s.PutEndpoint(endpoint("f", "n")) })
			fail("put sysctl q", func() error { return s.PutSysctl(Sysctl{"q", "0", "1"}) })
			fail("update endpoint e", func() error {
				ok, err := s.UpdateEndpoint("e", func(e *Endpoint) { e.Phase = Done })
				require.True(t, ok)
				return err
			})

			f.set(nil)
			require.NoError(t, s.PutEndpoint(endpoint("f", "n")))
			want.Endpoints = append(want.Endpoints, endpoint("f", "n"))
			require.Equal(t, want, contentsOf(reopen(t, s)))
		})
	}
}

// A directory that cannot be synced twice running leaves a file with a change
// that was refused. The next call takes it out, even one that changes nothing.
func TestRefusedChangeIsTakenOutLater(t *testing.T) {
	s, f := openFaulty(t)
	require.NoError(t, s.PutNetwork(network("n")))
	f.set(failing("syncdir", unix.EIO))
	require.ErrorIs(t, s.PutEndpoint(endpoint("e", "n")), unix.EIO)
	require.Empty(t, s.Endpoints())
	require.ErrorIs(t, s.PutNetwork(network("n")), unix.EIO, "nobody knows what the disk has")

	f.set(nil)
	require.NoError(t, s.Sync())
	require.Equal(t, 1, f.count("rename"))
	require.NoError(t, s.Sync())
	require.Equal(t, 1, f.count("rename"))
	require.Empty(t, reopen(t, s).Endpoints())
}

// What has ended has ended, whatever the disk says; the file follows.
func TestEndsNeedNoDisk(t *testing.T) {
	for _, step := range []string{"create", "write", "sync", "rename", "syncdir"} {
		for name, write := range map[string]func(*Store) error{
			"Sync":   (*Store).Sync,
			"change": func(s *Store) error { return s.PutNetwork(network("m")) },
			"Close":  (*Store).Close,
		} {
			t.Run(step+"/"+name, func(t *testing.T) {
				s, f := openFaulty(t)
				require.NoError(t, s.PutNetwork(network("n")))
				require.NoError(t, s.PutNetwork(network("old")))
				for _, id := range []string{"e", "f", "g"} {
					require.NoError(t, s.PutEndpoint(endpoint(id, "n")))
				}
				require.NoError(t, s.PutEndpoint(endpoint("h", "old")))
				require.NoError(t, s.PutSysctl(Sysctl{"p", "0", "1"}))

				f.set(failing(step, unix.ENOSPC))
				require.NoError(t, s.DeleteEndpoint("e"))
				require.NoError(t, s.RetireEndpoint("f", func(e *Endpoint) { e.Mappings = nil }))
				require.NoError(t, s.RetireEndpoint("absent", func(*Endpoint) { t.Error("called") }))
				require.NoError(t, s.RetireNetwork("n"))
				require.NoError(t, s.RetireNetwork("absent"))
				require.NoError(t, s.DeleteNetwork("old"))
				require.NoError(t, s.DeleteSysctl("p"))

				n, f2 := network("n"), endpoint("f", "n")
				n.Phase, f2.Mappings = Intent, nil
				want := contents{Networks: []Network{n}, Endpoints: []Endpoint{f2, endpoint("g", "n")}}
				require.Equal(t, want, contentsOf(s))
				require.ErrorIs(t, s.Sync(), unix.ENOSPC)
				require.ErrorIs(t, s.PutNetwork(network("m")), unix.ENOSPC)
				require.Equal(t, want, contentsOf(s))

				f.set(nil)
				require.NoError(t, write(s))
				if name == "change" {
					want.Networks = []Network{network("m"), n}
				}
				require.Equal(t, want, contentsOf(reopen(t, s)))
			})
		}
	}
}

func TestCloseTellsOfWhatItCannotWrite(t *testing.T) {
	f := &faults{}
	s, err := open(folder{dir: t.TempDir(), before: f.before}, migrations, nil)
	require.NoError(t, err)
	require.NoError(t, s.PutNetwork(network("n")))
	f.set(failing("write", unix.ENOSPC))
	require.NoError(t, s.DeleteNetwork("n"))
	require.ErrorIs(t, s.Close(), unix.ENOSPC)
	require.NoError(t, s.Close())
	f.set(nil)
	again, err := Open(s.Dir(), nil)
	require.NoError(t, err, "the lock was not given back")
	require.Len(t, again.Networks(), 1)
	require.NoError(t, again.Close())
	require.ErrorIs(t, s.DeleteNetwork("n"), os.ErrClosed)
}

// gather lets one write begin and holds it while join's n calls come together
// behind it, and lets go. It returns what those calls returned.
func gather(t *testing.T, s *Store, f *faults, n int, fail func(step string) error, join func(i int) error) []error {
	t.Helper()
	held, release := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	f.set(func(step string) error {
		if step == "sync" && first.CompareAndSwap(false, true) {
			close(held)
			<-release
			return nil
		}
		if fail != nil && first.Load() {
			return fail(step)
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() { assert.NoError(t, s.PutNetwork(network("first"))) })
	<-held
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { errs[i] = join(i) })
	}
	assert.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.open != nil && len(s.open.changes) == n
	}, 10*time.Second, time.Millisecond)
	_, ok := s.Network("first")
	assert.False(t, ok, "a getter told what is not on the disk yet")
	close(release)
	wg.Wait()
	return errs
}

func TestWaitingChangesShareAWrite(t *testing.T) {
	s, f := openFaulty(t)
	errs := gather(t, s, f, 50, nil, func(i int) error {
		return s.PutEndpoint(endpoint(fmt.Sprintf("e%02d", i), "first"))
	})
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.Equal(t, 2, f.count("rename"), "writes")
	require.Len(t, s.Endpoints(), 50)
	require.Len(t, reopen(t, s).Endpoints(), 50)
}

func TestSharedWriteFailsForAll(t *testing.T) {
	s, f := openFaulty(t)
	require.NoError(t, s.PutEndpoint(endpoint("old", "n")))
	var writes atomic.Int32
	second := func(step string) error {
		if step == "rename" && writes.Add(1) == 2 {
			return unix.EROFS
		}
		return nil
	}
	errs := gather(t, s, f, 50, second, func(i int) error {
		if i == 0 {
			return s.DeleteEndpoint("old")
		}
		return s.PutEndpoint(endpoint(fmt.Sprintf("e%02d", i), "first"))
	})
	require.NoError(t, errs[0], "an end")
	for _, err := range errs[1:] {
		require.ErrorIs(t, err, unix.EROFS)
	}
	want := contents{Networks: []Network{network("first")}}
	require.Equal(t, want, contentsOf(s))
	f.set(nil)
	require.Equal(t, want, contentsOf(reopen(t, s)))
}

// One record that cannot be encoded is no concern of the others.
func TestRefusedRecordLeavesTheOthers(t *testing.T) {
	s, f := openFaulty(t)
	require.NoError(t, s.PutEndpoint(endpoint("e0", "n")))
	errs := gather(t, s, f, 10, nil, func(i int) error {
		if i == 3 {
			_, err := s.UpdateEndpoint("e0", func(e *Endpoint) {
				e.Created = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)
			})
			return err
		}
		return s.PutEndpoint(endpoint(fmt.Sprintf("e%d", i), "n"))
	})
	for i, err := range errs {
		if i == 3 {
			require.ErrorContains(t, err, "update endpoint e0: ")
		} else {
			require.NoError(t, err)
		}
	}
	require.Len(t, reopen(t, s).Endpoints(), 9)
}

// A panic comes out of one of the calls; the others end with an error, nothing
// is changed, and the store goes on.
func TestPanicHangsNobody(t *testing.T) {
	s, f := openFaulty(t)
	require.NoError(t, s.PutEndpoint(endpoint("e0", "n")))
	var panics atomic.Int32
	errs := gather(t, s, f, 10, nil, func(i int) (err error) {
		defer func() {
			if r := recover(); r != nil {
				panics.Add(1)
				err = fmt.Errorf("panic: %v", r)
			}
		}()
		if i == 3 {
			_, err := s.UpdateEndpoint("e0", func(*Endpoint) { panic("bug") })
			return err
		}
		return s.PutEndpoint(endpoint(fmt.Sprintf("f%d", i), "n"))
	})
	for _, err := range errs {
		require.Error(t, err)
	}
	require.EqualValues(t, 1, panics.Load())
	require.Equal(t, []Endpoint{endpoint("e0", "n")}, s.Endpoints())
	require.NoError(t, s.PutEndpoint(endpoint("g", "n")))
	require.Len(t, reopen(t, s).Endpoints(), 2)
}

func TestConcurrentUpdatesLoseNothing(t *testing.T) {
	s := openStore(t, t.TempDir())
	require.NoError(t, s.PutEndpoint(Endpoint{ID: "shared"}))
	const writers, rounds = 8, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for r := range rounds {
				id := fmt.Sprintf("e%d-%d", w, r)
				assert.NoError(t, s.PutEndpoint(endpoint(id, "n")))
				_, ok := s.Endpoint(id)
				assert.True(t, ok, "not seen by the one who put it")
				ok, err := s.UpdateEndpoint("shared", func(e *Endpoint) {
					e.Exposed = append(e.Exposed, portmap.ExposedPort{Port: uint16(w*rounds + r)})
				})
				assert.NoError(t, err)
				assert.True(t, ok)
				if r%2 == 0 {
					assert.NoError(t, s.DeleteEndpoint(id))
				}
				s.Endpoints()
			}
		})
	}
	wg.Wait()
	for range 2 {
		require.Len(t, s.Endpoints(), 1+writers*rounds/2)
		shared, ok := s.Endpoint("shared")
		require.True(t, ok)
		var got, want []int
		for i, p := range shared.Exposed {
			got = append(got, int(p.Port))
			want = append(want, i)
		}
		require.ElementsMatch(t, want, got)
		s = reopen(t, s)
	}
}

func TestCloseDuringWrites(t *testing.T) {
	s := openStore(t, t.TempDir())
	acknowledged := make([]int, 4)
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for w := range acknowledged {
		wg.Go(func() {
			for i := 0; ; i++ {
				err := s.PutEndpoint(endpoint(fmt.Sprintf("e%d-%d", w, i), "n"))
				if errors.Is(err, os.ErrClosed) {
					return
				}
				if !assert.NoError(t, err) {
					return
				}
				acknowledged[w]++
				if i == 2 {
					started <- struct{}{}
				}
			}
		})
	}
	for range acknowledged {
		<-started
	}
	require.NoError(t, s.Close())
	wg.Wait()
	total := 0
	for _, n := range acknowledged {
		total += n
	}
	require.Len(t, reopen(t, s).Endpoints(), total)
}
