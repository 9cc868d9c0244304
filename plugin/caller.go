package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ticks is how many of the kernel's there are in a second, on every platform of
// Go's.
const ticks = 100

// processStart is when a process began, by the clock of now. It is up to a
// hundredth of a second early, and never late.
func processStart(pid int) (time.Time, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return time.Time{}, err
	}
	// The name in parentheses may hold anything. The state, the third field,
	// follows it; the 22nd is the start, in ticks since the machine's.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return time.Time{}, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	start, err := strconv.ParseInt(string(fields[19]), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
	}
	now := time.Now()
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}, err
	}
	return now.Add(time.Duration(start)*time.Second/ticks - time.Duration(up.Nano())), nil
}
