package enginetest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a program that runs in the background with its output in a file.
type Process struct {
	Name string
	Log  string // path
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended; err is set then
	err  error
}

// Start starts cmd and appends what it prints to the file log.
func Start(name, log string, cmd *exec.Cmd) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	// A signal for the tests is not one for the engine, which is stopped in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{Name: name, Log: log, cmd: cmd, done: make(chan struct{})}
	go p.wait()
	return p, nil
}

func (p *Process) wait() {
	p.err = p.cmd.Wait()
	close(p.done)
}

// PID is its process ID. It is that of the program itself: nsenter becomes it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Alive says whether it still runs.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Stop sends a signal and waits until the process has ended, which is at once
// where it has already. After the time given it is killed, and that is the
// error; so is an exit status other than 0 after SIGTERM.
func (p *Process) Stop(signal syscall.Signal, within time.Duration) error {
	if p.Alive() {
		_ = p.cmd.Process.Signal(signal) // it may have ended by now
	}
	select {
	case <-p.done:
		if signal == syscall.SIGKILL || p.err == nil {
			return nil
		}
		return fmt.Errorf("stop %s: %w", p.Name, p.err)
	case <-time.After(within):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("stop %s: still there %v after %v", p.Name, within, signal)
	}
}

// Tail is the end of its log, of at most n lines.
func (p *Process) Tail(n int) string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}

// killTree kills every process that names dir in its command line, as each
// containerd-shim of an engine does, and all that descends from it.
func killTree(dir string) {
	children := map[int][]int{}
	var kill []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is good
	for _, path := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		// The name in parentheses may hold anything; the state and the parent
		// follow it.
		if fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]); len(fields) > 1 {
			parent, _ := strconv.Atoi(string(fields[1]))
			children[parent] = append(children[parent], pid)
		}
		args, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err == nil && bytes.Contains(args, []byte(dir+"/")) && pid != os.Getpid() {
			kill = append(kill, pid)
		}
	}
	for i := 0; i < len(kill); i++ {
		kill = append(kill, children[kill[i]]...)
	}
	for _, pid := range kill {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
	}
}

// Poll calls f until it gives no error, at first after 20 ms and then less and
// less often, up to four times a second: most of what is asked starts programs,
// which the machine has to share with what is waited for. After the time given
// the last error is returned.
func Poll(within time.Duration, f func() error) error {
	deadline := time.Now().Add(within)
	for pause := 20 * time.Millisecond; ; pause = min(pause*3/2, 250*time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}
