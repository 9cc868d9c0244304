package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is what the figures depend on.
type machine struct {
	cpu, kernel, system string
	memory              int64 // bytes
	loadBefore          string
}

func describeMachine() (m machine, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, err
	}
	m.kernel = unix.ByteSliceToString(u.Release[:])
	m.cpu = valueIn("/proc/cpuinfo", "model name", ":")
	m.system = valueIn("/etc/os-release", "PRETTY_NAME", "=")
	m.loadBefore = loadAverage()
	m.memory, err = statusOf("/proc/meminfo", "MemTotal")
	return m, err
}

// String is one line for the head of the tables.
func (m machine) String() string {
	return fmt.Sprintf("%d × %s, %s GiB of memory, Linux %s, %s, %s", runtime.NumCPU(), m.cpu,
		gib(m.memory), m.kernel, m.system, runtime.Version())
}

// valueIn is the first value of a name in a file of lines, or "unknown".
func valueIn(path, name, separator string) string {
	f, err := os.Open(path)
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, value, found := strings.Cut(lines.Text(), separator)
		if found && strings.TrimSpace(key) == name {
			return strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return "unknown"
}

// loadAverage is that of 1, 5 and 15 minutes.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(b)); err == nil && len(f) > 3 {
		return strings.Join(f[:3], " ")
	}
	return "unknown"
}

// programVersion is the first line that a program says of itself.
func programVersion(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.Join(strings.Fields(line), " ")
}
