package portmap

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-iptables/iptables"

	"github.com/portolan/portolan/internal/fault"
)

// IPTablesError is a run of one of the iptables programs that failed. It wraps
// the errno that the program's text stands for, or what exec says.
type IPTablesError struct {
	Args   []string // the program and its arguments
	Stderr string   // what it said, in one line
	Err    error
}

func (e *IPTablesError) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("run %s: %v", strings.Join(e.Args, " "), e.Err)
	}
	return fmt.Sprintf("run %s: %s", strings.Join(e.Args, " "), e.Stderr)
}

func (e *IPTablesError) Unwrap() error { return e.Err }

// iptTexts are the texts of iptables 1.8, both variants, that stand for an
// errno; they are not translated.
var iptTexts = []struct {
	text  string
	errno syscall.Errno
}{
	{"Permission denied", syscall.EPERM},
	{"Operation not permitted", syscall.EPERM},
	{"No chain/target/match by that name", syscall.ENOENT},
	{"No such file or directory", syscall.ENOENT},
	{"does not exist", syscall.ENOENT},
	{"Device or resource busy", syscall.EBUSY},
	{"Resource temporarily unavailable", syscall.EAGAIN},
	{"xtables lock", syscall.EAGAIN},
}

// newIPTError is where a program's text becomes an error.
func newIPTError(args []string, stderr string, err error) error {
	stderr = strings.Join(strings.Fields(stderr), " ")
	for _, t := range iptTexts {
		if strings.Contains(stderr, t.text) {
			return &IPTablesError{args, stderr, t.errno}
		}
	}
	return &IPTablesError{args, stderr, err}
}

// iptExec runs a program and returns what it prints.
type iptExec func(stdin string, args ...string) (stdout string, err error)

// iptLockWait is how long a program waits for the lock of the legacy variant,
// which all of them share, and iptRunWait how long it may take in all: ten
// thousand rules are a second's work. Where one has got stuck the next get only
// iptTiredWait, until one ends by itself: an engine's call needs several, and is
// to fail with what is wrong before it takes too long itself.
const (
	iptLockWait  = 10 * time.Second
	iptRunWait   = 20 * time.Second
	iptTiredWait = 2 * time.Second
)

// iptRunner runs the programs of one family. The zero value is ready.
type iptRunner struct{ tired atomic.Bool }

func (r *iptRunner) run(stdin string, args ...string) (string, error) {
	wait := iptRunWait
	if r.tired.Load() {
		wait = iptTiredWait
	}
	out, err := iptRunWithin(wait, stdin, args...)
	r.tired.Store(errors.Is(err, context.DeadlineExceeded))
	return out, err
}

// iptRunWithin kills the program when the time is over. It does not wait for
// what the program has started and that still has its output open.
func iptRunWithin(wait time.Duration, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = time.Second
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil && err != nil {
		err = fmt.Errorf("no end for %s; it was killed: %w", wait, ctx.Err())
	}
	if err != nil {
		return "", newIPTError(args, stderr.String(), err)
	}
	return stdout.String(), nil
}

// iptTool is the programs of one family.
type iptTool struct {
	is4  bool
	path string // of iptables or ip6tables; -restore is beside it
	nft  bool   // of the variant that writes nftables
	run  iptExec
}

// iptHasIPv6 says whether the kernel has IPv6 at all; without, ip6tables fails.
func iptHasIPv6() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
}

// openIPT finds the programs of one family.
func openIPT(is4 bool, path string) (*iptTool, error) {
	family, program := iptables.ProtocolIPv6, "ip6tables"
	if is4 {
		family, program = iptables.ProtocolIPv4, "iptables"
	}
	path, err := exec.LookPath(cmp.Or(path, program))
	if err != nil {
		return nil, fmt.Errorf("find iptables: %w", err)
	}
	ipt, err := iptables.New(iptables.IPFamily(family), iptables.Path(path), iptables.Timeout(int(iptLockWait.Seconds())))
	if err != nil {
		return nil, fmt.Errorf("find iptables: %w", err)
	}
	// DNAT of a range that keeps its order came with 1.8.
	if a, b, c := ipt.GetIptablesVersion(); a < 1 || a == 1 && b < 8 {
		return nil, fmt.Errorf("%s is version %d.%d.%d: 1.8.0 or newer is needed", path, a, b, c)
	}
	t := &iptTool{is4: is4, path: path, run: new(iptRunner).run}
	says, err := t.run("", path, "-V")
	if err != nil {
		return nil, err
	}
	t.nft = strings.Contains(says, "nf_tables")
	return t, nil
}

// iptWait is iptLockWait as the programs want it.
func iptWait() string { return strconv.Itoa(int(iptLockWait.Seconds())) }

// restore applies text of iptables-restore's syntax; each table's part is one
// transaction. Chains that it does not name stay as they are.
func (t *iptTool) restore(text string) error {
	if text == "" {
		return nil
	}
	parts := []string{text}
	if fault.On { // the program may be killed with us
		parts = strings.SplitAfter(text, "COMMIT\n")
	}
	for _, part := range parts {
		if part == "" {
			continue
		}
		if _, err := t.run(part, t.path+"-restore", "--noflush", "-w", iptWait()); err != nil {
			return err
		}
		fault.Point("iptables table set")
	}
	return nil
}
