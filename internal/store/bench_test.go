package store

import (
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// benchStore is a store with n endpoints as the engine makes them.
func benchStore(b *testing.B, n int) *Store {
	b.Helper()
	var c contents
	for i := range n {
		c.Endpoints = append(c.Endpoints, benchEndpoint(i))
	}
	st, err := newState(c)
	require.NoError(b, err)
	s := openStore(b, b.TempDir())
	s.state.Store(st)
	return s
}

func benchEndpoint(i int) Endpoint {
	e := endpoint(fmt.Sprintf("%064x", i), fmt.Sprintf("%064x", 1))
	e.Sandbox = "/var/run/docker/netns/0123456789ab"
	e.Owner = &Owner{ContainerID: e.ID, ContainerName: "web-" + strconv.Itoa(i)}
	return e
}

func BenchmarkPutEndpoint(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			s := benchStore(b, n)
			e := benchEndpoint(n / 2)
			for i := 0; b.Loop(); i++ {
				e.Veth = strconv.Itoa(i)
				require.NoError(b, s.PutEndpoint(e))
			}
		})
	}
}

// One operation is 50 endpoints put at once.
func BenchmarkPutEndpointTogether(b *testing.B) {
	s := benchStore(b, 1000)
	for i := 0; b.Loop(); i++ {
		var wg sync.WaitGroup
		for n := range 50 {
			wg.Go(func() {
				e := benchEndpoint(n)
				e.Veth = strconv.Itoa(i)
				require.NoError(b, s.PutEndpoint(e))
			})
		}
		wg.Wait()
	}
}

// What a write costs but for the disk.
func BenchmarkEncode(b *testing.B) {
	st := benchStore(b, 1000).state.Load()
	for b.Loop() {
		_, err := encode(st, 1)
		require.NoError(b, err)
	}
}

func BenchmarkOpen(b *testing.B) {
	s := benchStore(b, 1000)
	require.NoError(b, s.PutNetwork(network("n")))
	require.NoError(b, s.Close())
	for b.Loop() {
		s, err := Open(s.Dir(), nil)
		require.NoError(b, err)
		require.NoError(b, s.Close())
	}
}
