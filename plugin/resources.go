package main

import (
	"encoding/json"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// resources is what the daemon takes of the machine: what an operator watches
// for a leak. Numbers that /proc does not tell are 0.
type resources struct {
	Goroutines    int
	Threads       int
	OpenFiles     int
	OpenFileLimit uint64
	ResidentBytes uint64 // physical memory, of which HeapBytes are Go objects
	HeapBytes     uint64
	UptimeSeconds float64
}

// takeResources looks at this process, which began at that time.
func takeResources(began time.Time) resources {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	r := resources{
		Goroutines:    runtime.NumGoroutine(),
		OpenFileLimit: openFileLimit(),
		HeapBytes:     m.HeapAlloc,
		UptimeSeconds: time.Since(began).Seconds(),
	}
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		r.OpenFiles = len(files) - 1 // without the folder's own
	}
	status, _ := os.ReadFile("/proc/self/status") // no numbers, then
	r.Threads = int(statusNumber(string(status), "Threads"))
	r.ResidentBytes = statusNumber(string(status), "VmRSS") << 10
	return r
}

// statusNumber is the number of a line of /proc/PID/status, in the line's unit.
func statusNumber(status, name string) uint64 {
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		if fields := strings.Fields(value); key == name && len(fields) > 0 {
			n, _ := strconv.ParseUint(fields[0], 10, 64)
			return n
		}
	}
	return 0
}

// withResources also answers /Portolan.Resources, at any time and at once.
func withResources(next http.Handler) http.Handler {
	began := time.Now()
	mux := http.NewServeMux()
	mux.Handle("/", next)
	mux.HandleFunc("/Portolan.Resources", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(takeResources(began)) // who asked has gone
	})
	return mux
}
