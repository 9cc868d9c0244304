package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const kib = 1024

// processes is what runs in a network namespace.
type processes struct {
	count   int   // but for containers' shims
	proxies int   // docker-proxy among them
	memory  int64 // of the docker-proxies, in bytes; what they share counts once
}

// lookAt looks at all processes of a network namespace, given as its file.
func lookAt(namespace string) (p processes, err error) {
	want, err := os.Stat(namespace)
	if err != nil {
		return p, err
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is good
	for _, dir := range dirs {
		is, err := os.Stat(filepath.Join(dir, "ns/net"))
		if err != nil || !os.SameFile(is, want) {
			continue // it has ended, or is somebody else's
		}
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		switch name := string(bytes.TrimSpace(comm)); {
		case strings.HasPrefix(name, "containerd-shim"):
			continue
		case name == "docker-proxy":
			p.proxies++
			part, _ := statusOf(dir+"/smaps_rollup", "Pss") // 0 if it has ended
			p.memory += part
		}
		p.count++
	}
	return p, nil
}

// proxiesOn are the docker-proxies of a network namespace that serve one of
// these host ports.
func proxiesOn(namespace string, ports ...string) (pids []int, err error) {
	want, err := os.Stat(namespace)
	if err != nil {
		return nil, err
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		is, err := os.Stat(filepath.Join(dir, "ns/net"))
		if err != nil || !os.SameFile(is, want) {
			continue
		}
		text, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		args := strings.Split(string(text), "\x00")
		at := slices.Index(args, "-host-port") + 1
		if filepath.Base(args[0]) != "docker-proxy" || at == 0 || at == len(args) || !slices.Contains(ports, args[at]) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// memory is a process's resident memory, now and at its peak, in bytes.
type memory struct{ rss, peak int64 }

func memoryOf(pid int) (m memory, err error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	if m.rss, err = statusOf(path, "VmRSS"); err != nil {
		return m, err
	}
	m.peak, err = statusOf(path, "VmHWM")
	return m, err
}

// hostMemory is what programs could still get, and what the kernel has in its
// slabs, in bytes.
func hostMemory() (free, slab int64, err error) {
	if free, err = available(); err != nil {
		return 0, 0, err
	}
	slab, err = statusOf("/proc/meminfo", "Slab")
	return free, slab, err
}

// available is the memory that programs could still get, in bytes.
func available() (int64, error) { return statusOf("/proc/meminfo", "MemAvailable") }

// statusOf reads a line of the form "Name: 123 kB".
func statusOf(path, name string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		value, found := strings.CutPrefix(lines.Text(), name+":")
		if !found {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s of %s: %w", name, path, err)
		}
		return n * kib, nil
	}
	return 0, fmt.Errorf("no %s in %s", name, path)
}

// clockTick is the unit of times in /proc: USER_HZ, which is 100 a second on
// every architecture that Go knows.
const clockTick = 10 * time.Millisecond

// cpuOf is the processor time that processes and their children, dead and
// alive, have used.
func cpuOf(pids []int) (total time.Duration, err error) {
	for _, pid := range pids {
		used, err := ticksOf(pid)
		if err != nil {
			return 0, err
		}
		total += used
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
		for _, field := range strings.Fields(string(children)) {
			if child, err := strconv.Atoi(field); err == nil {
				used, _ := ticksOf(child) // it may have ended, and is in its parent's then
				total += used
			}
		}
	}
	return total, nil
}

// machineCPU is the processor time that all processors have worked since the
// machine started, for programs, the kernel and interrupts.
func machineCPU() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return busyTime(string(text))
}

// busyTime reads the first line of proc_stat(5): cpu user nice system idle
// iowait irq softirq …
func busyTime(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// ticksOf reads utime, stime, cutime and cstime of proc_pid_stat(5).
func ticksOf(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is a name, which may have blanks and parentheses.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const utime = 11 // the 14th of all
	if len(fields) < utime+4 {
		return 0, fmt.Errorf("%d fields in the stat of process %d", len(fields), pid)
	}
	var ticks int64
	for _, f := range fields[utime : utime+4] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}
