// Package netnstest gives tests a network of their own: the test binary runs
// inside a new network namespace, which stands for the Docker host, and tests
// make more of them, which stand for containers and for other hosts.
//
// Because the whole process is inside, goroutines of the code under test need
// not know: whatever thread they run on, their sockets are in the namespace.
package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// inside is set in the environment of the process that runs in the namespace.
const inside = "PORTOLAN_NETNSTEST"

// Main is a TestMain: it runs the package's tests in a new network namespace
// whose lo is up, and exits. It needs root (CAP_SYS_ADMIN) and says so.
func Main(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	err := reexec()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "netnstest: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// reexec runs this program again from a thread that has moved into a new
// namespace. The thread stays locked: the runtime ends it with its goroutine,
// and nothing else of this process ever sees the namespace.
func reexec() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- reexecHere()
	}()
	return <-done
}

func reexecHere() error {
	ns, err := netns.New()
	if err != nil {
		return fmt.Errorf("make a network namespace (the tests need root): %w", err)
	}
	defer ns.Close()
	if err := linkUp("lo"); err != nil {
		return err
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func linkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set interface %s up: %w", name, err)
	}
	return nil
}
