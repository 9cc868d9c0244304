package sklookup

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/bpfhost"
)

// Config is what a Table needs. The zero value is usable.
type Config struct {
	// Cgroup is where the root of a cgroup v2 hierarchy is mounted; "" is where
	// the host has it.
	Cgroup string
	// SysctlDir is /proc/sys/net where it can be written; "" means there.
	SysctlDir string
	// Recorded is what an earlier process told Record last. It goes, unless that
	// process holds ports still, by Keep: then it goes with Settle.
	Recorded string
	// Record is told which ports are about to be in ip_local_reserved_ports
	// because of this process, as they stand there ("" for none), before the
	// first are and after some are no more. Its error ends the attempt.
	Record func(added string) error
	// Keep has what is held stay held from the end of this process, with Leave or
	// by a signal, until the next one's Settle. nil: it is free then.
	Keep Keeper
	Log  *slog.Logger // nil is silent
}

// Table is the ports that are held. Its methods are safe for concurrent use.
type Table struct {
	cfg    Config
	objs   objects
	links  []*link.RawLink
	netns  uint64 // its cookie
	sysctl reserved

	mu sync.Mutex // guards below
	succession
	ranges []portRange
	kernel map[programsPortKey]uint8 // what the map of ports has
	inodes []uint64                  // of what Sockets opened
	closed bool
}

// objects are what the kernel holds of sklookup.bpf.c.
type objects struct {
	programsPrograms
	programsMaps
	programsVariables
	Data *ebpf.Map `ebpf:".bss"` // where the variables are
}

func (o *objects) Close() error {
	return errors.Join(o.programsPrograms.Close(), o.programsMaps.Close(), o.Data.Close())
}

// Open attaches the programs for the calling thread's network namespace. Nothing
// is held yet.
//
// The error says what is missing: the cgroup v2 hierarchy, a capability, or
// something of the kernel.
func Open(cfg Config) (*Table, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.SysctlDir == "" {
		cfg.SysctlDir = "/proc/sys/net"
	}
	if cfg.Record == nil {
		cfg.Record = func(string) error { return nil }
	}
	t := &Table{
		cfg:    cfg,
		sysctl: reserved{dir: cfg.SysctlDir, record: cfg.Record, ours: cfg.Recorded},
		kernel: map[programsPortKey]uint8{},

		succession: succession{keep: cfg.Keep, log: cfg.Log},
	}
	if err := t.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("attach BPF programs: %w", err), t.Close())
	}
	return t, nil
}

func (t *Table) open() (err error) {
	if missing := bpfhost.MissingCaps(); len(missing) > 0 {
		return fmt.Errorf("needs %s: %w", strings.Join(missing, ", "), unix.EPERM)
	}
	if err := t.sysctl.check(); err != nil {
		return err
	}
	if t.cfg.Cgroup == "" {
		if t.cfg.Cgroup, err = bpfhost.FindRoot(); err != nil {
			return err
		}
	}
	root, err := bpfhost.OpenRoot(t.cfg.Cgroup)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", t.cfg.Cgroup, err)
	}
	defer root.Close()
	netns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer netns.Close()
	if err := t.load(); err != nil {
		return err
	}
	for _, p := range t.programs() {
		target := root
		if p.attach == ebpf.AttachSkLookup {
			target = netns
		}
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(target.Fd()), Program: p.Program, Attach: p.attach})
		if err != nil {
			return fmt.Errorf("attach %s: %w", p.attach, err)
		}
		t.links = append(t.links, l)
	}
	if err := t.teachOwner(); err != nil {
		return err
	}
	return t.succeed()
}

// succeed takes over from an earlier process.
func (t *Table) succeed() error {
	for _, l := range t.links {
		t.succession.links = append(t.succession.links, heldFD(l.FD()))
	}
	t.variables = heldFD(t.objs.Data.FD())
	if t.keep != nil {
		t.inherit(t.objs.Data)
	}
	if t.earlier == 0 {
		return t.sysctl.set(nil)
	}
	inherited := t.inheritedSockets(t.netns)
	defer closeAll(inherited)
	for _, f := range inherited {
		if info, err := f.Stat(); err == nil { // nil has none
			t.inodes = append(t.inodes, info.Sys().(*syscall.Stat_t).Ino)
		}
	}
	floor, err := parsePorts(t.cfg.Recorded)
	t.sysctl.floor = floor
	return err
}

// Settle gives up what an earlier process held and this one does not. Nobody else
// can have it before.
func (t *Table) Settle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.earlier == 0 {
		return
	}
	t.settle()
	t.sysctl.floor = nil
	if err := t.sysctl.set(t.ranges); err != nil {
		t.cfg.Log.Warn("ports that an earlier process held stay reserved", "err", err)
	}
}

// Leave leaves what is held to the next process, if it is kept: nothing is steered or
// released from here on. It is for the end of this one, before Close.
func (t *Table) Leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left = t.kept
}

type attachment struct {
	*ebpf.Program
	attach ebpf.AttachType
}

func (t *Table) programs() []attachment {
	return []attachment{
		{t.objs.Bind4, ebpf.AttachCGroupInet4Bind},
		{t.objs.Bind6, ebpf.AttachCGroupInet6Bind},
		{t.objs.Lookup, ebpf.AttachSkLookup},
	}
}

func (t *Table) load() error {
	var err error
	if t.netns, err = bpfhost.NetnsCookie(); err != nil {
		return err
	}
	spec, err := loadPrograms()
	if err != nil {
		return err
	}
	if err := spec.Variables[programsVarNetns].Set(t.netns); err != nil {
		return fmt.Errorf("set network namespace: %w", err)
	}
	if err := spec.LoadAndAssign(&t.objs, nil); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return nil
}

// teachOwner has the programs learn this process's number, which in a namespace
// of its own is another than the one it knows.
func (t *Table) teachOwner() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("ask for a socket's cookie: %w", err)
	}
	if err := t.objs.Teacher.Set(cookie); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fmt.Errorf("set owner: bind: %w", err)
	}
	var owner uint32
	if err := errors.Join(t.objs.Teacher.Set(uint64(0)), t.objs.Owner.Get(&owner)); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if owner == 0 {
		return fmt.Errorf("programs at cgroup %s do not see this process", t.cfg.Cgroup)
	}
	return nil
}

// Cgroup is the folder that programs are attached to.
func (t *Table) Cgroup() string { return t.cfg.Cgroup }

// Close detaches the programs and gives every port back, unless they were left to
// the next process; the sockets of Sockets are not closed. Closing again is nil.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	var err error
	if len(t.ranges) > 0 && !t.left {
		t.ranges = nil
		err = t.sysctl.set(nil)
	}
	if t.left {
		// Nobody may bind what is held until the next process says who it is.
		err = errors.Join(err, t.objs.Owner.Set(uint32(0)))
	}
	for i := len(t.links) - 1; i >= 0; i-- {
		if t.keep != nil && !t.left { // a copy may be kept
			err = errors.Join(err, t.links[i].Detach())
		}
		err = errors.Join(err, t.links[i].Close())
	}
	return errors.Join(err, t.objs.Close())
}
