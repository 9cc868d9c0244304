package hooks

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/bpfhost"
)

// Hooks are the programs, attached. Their methods are safe for concurrent use.
type Hooks struct {
	log    *slog.Logger
	cgroup string
	objs   objects
	links  []link.Link
	local  *watcher

	mu     sync.Mutex // guards below
	set    map[ports]backend
	closed bool
}

// objects are what the kernel holds of hooks.bpf.c.
type objects struct {
	programsPrograms
	programsMaps
}

func (o *objects) Close() error {
	return errors.Join(o.programsPrograms.Close(), o.programsMaps.Close())
}

// Open attaches the programs to the root of the cgroup v2 hierarchy that is
// mounted at a folder, for the calling process's network namespace. Nothing is
// redirected before Set. A nil log is silent.
//
// "" is where the host has it mounted; a hybrid host (cgroup v1 with systemd) has
// it at /sys/fs/cgroup/unified. Where there is none, the caller can mount a fresh
// cgroup2 anywhere, for which it needs CAP_SYS_ADMIN; it covers every process,
// and need not stay mounted.
//
// The error says what is missing: the hierarchy, a capability (CAP_BPF,
// CAP_PERFMON to read the kernel's structs, CAP_NET_ADMIN), or something of the
// kernel (5.14 or newer, with CONFIG_CGROUP_BPF and CONFIG_DEBUG_INFO_BTF).
func Open(cgroup string, log *slog.Logger) (*Hooks, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := &Hooks{log: log, cgroup: cgroup, set: map[ports]backend{}}
	if err := h.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("attach BPF programs: %w", err), h.Close())
	}
	return h, nil
}

// Cgroup is the folder that the programs are attached to.
func (h *Hooks) Cgroup() string { return h.cgroup }

func (h *Hooks) open() (err error) {
	if missing := bpfhost.MissingCaps(); len(missing) > 0 {
		return fmt.Errorf("needs %s: %w", strings.Join(missing, ", "), unix.EPERM)
	}
	if h.cgroup == "" {
		if h.cgroup, err = bpfhost.FindRoot(); err != nil {
			return err
		}
	}
	root, err := bpfhost.OpenRoot(h.cgroup)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", h.cgroup, err)
	}
	defer root.Close()
	if err := h.load(); err != nil {
		return err
	}
	// The addresses before the programs: what is attached is whole.
	if h.local, err = watch(h.objs.Locals, h.log); err != nil {
		return err
	}
	for _, p := range h.programs() {
		// AttachCgroup would fall back to what outlives the process.
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(root.Fd()), Program: p.Program, Attach: p.attach})
		if err != nil {
			return fmt.Errorf("attach %s: %w", p.attach, err)
		}
		h.links = append(h.links, l)
	}
	return nil
}

type attachment struct {
	*ebpf.Program
	attach ebpf.AttachType
}

// programs are in the order in which they are attached: who is given another
// address can tell what was dialled from the first moment on.
func (h *Hooks) programs() []attachment {
	return []attachment{
		{h.objs.Getpeername6, ebpf.AttachCgroupInet6GetPeername},
		{h.objs.Recvmsg6, ebpf.AttachCGroupUDP6Recvmsg},
		{h.objs.Connect6, ebpf.AttachCGroupInet6Connect},
		{h.objs.Sendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
	}
}

func (h *Hooks) load() error {
	cookie, err := bpfhost.NetnsCookie()
	if err != nil {
		return err
	}
	spec, err := loadPrograms()
	if err != nil {
		return err
	}
	if err := spec.Variables[programsVarNetns].Set(cookie); err != nil {
		return fmt.Errorf("set network namespace: %w", err)
	}
	if err := spec.LoadAndAssign(&h.objs, nil); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return nil
}

// Close detaches the programs: clients reach the userland proxy again, those
// that are connected stay connected. Closing again is nil.
func (h *Hooks) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	var err error
	// In reverse, for the reason that programs gives.
	for i := len(h.links) - 1; i >= 0; i-- {
		err = errors.Join(err, h.links[i].Close())
	}
	if h.local != nil {
		err = errors.Join(err, h.local.Close())
	}
	return errors.Join(err, h.objs.Close())
}
