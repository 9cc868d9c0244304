package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestResources(t *testing.T) {
	h := withResources(http.NotFoundHandler())
	ask := func() (r resources) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/Portolan.Resources", nil))
		require.Equal(t, http.StatusOK, w.Code)
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &r))
		return r
	}
	before := ask()
	assert.Positive(t, before.Threads)
	assert.Positive(t, before.HeapBytes)
	assert.Greater(t, before.ResidentBytes, before.HeapBytes/2)
	assert.Equal(t, openFileLimit(), before.OpenFileLimit)

	var files []*os.File
	block := make(chan struct{})
	for range 50 {
		f, err := os.Open(os.DevNull)
		require.NoError(t, err)
		files = append(files, f)
		go func() { <-block }()
	}
	after := ask()
	assert.InDelta(t, before.OpenFiles+50, after.OpenFiles, 10)
	assert.InDelta(t, before.Goroutines+50, after.Goroutines, 10)
	assert.Greater(t, after.UptimeSeconds, before.UptimeSeconds)
	assert.Less(t, after.UptimeSeconds, time.Hour.Seconds())
	close(block)
	for _, f := range files {
		require.NoError(t, f.Close())
	}
}

func TestStatusNumber(t *testing.T) {
	const status = "Name:\tportolan\nVmRSS:\t   12345 kB\nThreads:\t7\nNSpid:\n"
	assert.Equal(t, uint64(12345), statusNumber(status, "VmRSS"))
	assert.Equal(t, uint64(7), statusNumber(status, "Threads"))
	assert.Zero(t, statusNumber(status, "NSpid"))
	assert.Zero(t, statusNumber(status, "Vm"))
}
