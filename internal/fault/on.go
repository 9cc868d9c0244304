//go:build faults

package fault

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// On says whether this build has points.
const On = true

var (
	dir = os.Getenv("PORTOLAN_FAULTS")
	mu  sync.Mutex // orders passes
)

// Point is where the step of that name has been done.
func Point(name string) {
	if dir == "" {
		return
	}
	mu.Lock()
	defer mu.Unlock()
	n, err := pass(name)
	if err != nil {
		return // nobody asks for a trace
	}
	here := fmt.Sprintf("%s %d", name, n)
	if ordered("kill", here) {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // it takes effect at once, but for this thread
	}
	for ordered("hold", here) {
		time.Sleep(time.Millisecond)
	}
}

// ordered says whether the file of an action names this pass.
func ordered(action, here string) bool {
	order, err := os.ReadFile(filepath.Join(dir, action))
	return err == nil && string(bytes.TrimSpace(order)) == here
}

// pass writes the name down and says how often it stands there now.
func pass(name string) (int, error) {
	f, err := os.OpenFile(filepath.Join(dir, "trace"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	_, err = f.WriteString(name + "\n")
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return 0, err
	}
	trace, err := os.ReadFile(filepath.Join(dir, "trace"))
	if err != nil {
		return 0, err
	}
	n := 0
	for line := range bytes.Lines(trace) {
		if string(bytes.TrimSpace(line)) == name {
			n++
		}
	}
	return n, nil
}
