package main

import (
	"fmt"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// kept are the capabilities that a running daemon works with, each where this
// process has it: NET_ADMIN for bridges, rules and sysctls, NET_BIND_SERVICE for
// ports below 1024, NET_RAW for the ICMP errors of the proxy and for iptables, BPF
// for programs and their maps; SYS_PTRACE and DAC_READ_SEARCH to name the process
// that holds a port. PERFMON is not among them: only loading takes it.
var kept = []cap.Value{
	cap.NET_ADMIN, cap.NET_BIND_SERVICE, cap.NET_RAW, cap.BPF, cap.SYS_PTRACE, cap.DAC_READ_SEARCH,
}

// toLoad are those that the daemon starts with: the kernel wants PERFMON of whoever
// loads programs that read its structs.
var toLoad = append([]cap.Value{cap.PERFMON}, kept...)

// confine leaves this process, all of its threads, and the programs that it
// starts with some of the capabilities that it has, for good: no file and no
// set-user-ID bit gives more (no_new_privs, prctl(2)). Tests, which run daemons in
// their own process, replace it.
var confine = func(to []cap.Value) error {
	now := cap.GetProc()
	next := cap.NewSet()
	for _, c := range to {
		has, err := now.GetFlag(cap.Permitted, c)
		if err != nil || !has { // an older kernel does not know all of them
			continue
		}
		for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
			if err := next.SetFlag(flag, true, c); err != nil {
				return fmt.Errorf("keep %s: %w", c, err)
			}
		}
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	// Without inheritable ones there are no ambient ones either (capabilities(7)).
	if err := next.SetProc(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}
