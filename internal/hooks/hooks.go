package hooks

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
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
	if missing := missingCaps(); len(missing) > 0 {
		return fmt.Errorf("needs %s: %w", strings.Join(missing, ", "), unix.EPERM)
	}
	if h.cgroup == "" {
		if h.cgroup, err = findRoot(); err != nil {
			return err
		}
	}
	root, err := openRoot(h.cgroup)
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
	cookie, err := netnsCookie()
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

// netnsCookie is the kernel's name for this process's network namespace.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("ask for the network namespace's cookie: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("ask for the network namespace's cookie (Linux 5.14): %w", err)
	}
	return cookie, nil
}

// findRoot is where the root of a cgroup v2 hierarchy is mounted.
func findRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		// proc(5): ID, parent, device, root, mount point, options, optional
		// fields, a dash, type
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if len(f) < 5 || !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		dir := unescape(f[4])
		if root, err := openRoot(dir); err == nil {
			return dir, root.Close()
		}
	}
	return "", errors.New("no root of a cgroup v2 hierarchy is mounted")
}

// unescape reads a path of mountinfo, where blanks and their like are \ and
// three octal digits.
func unescape(path string) string {
	var out strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '\\' && i+4 <= len(path) {
			if n, err := strconv.ParseUint(path[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(path[i])
	}
	return out.String()
}

// openRoot opens the root of a cgroup v2 hierarchy. Anywhere else the programs
// would see some of the host's processes only.
func openRoot(cgroup string) (*os.File, error) {
	root, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	err = unix.Fstatfs(int(root.Fd()), &fs)
	if err == nil && fs.Type != unix.CGROUP2_SUPER_MAGIC {
		err = errors.New("not a cgroup v2 hierarchy")
	}
	if err == nil {
		// Every cgroup has this file but the root.
		if _, serr := os.Stat(filepath.Join(cgroup, "cgroup.events")); serr == nil {
			err = errors.New("not the root of its hierarchy")
		}
	}
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// missingCaps are the capabilities that this process's effective set lacks.
func missingCaps() (missing []string) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return []string{"capget: " + err.Error()}
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	for _, c := range []struct {
		n, or int // CAP_SYS_ADMIN was all of BPF once, and is still
		name  string
	}{
		{unix.CAP_BPF, unix.CAP_SYS_ADMIN, "CAP_BPF"},
		{unix.CAP_PERFMON, unix.CAP_SYS_ADMIN, "CAP_PERFMON"},
		{unix.CAP_NET_ADMIN, unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"},
	} {
		if !has(c.n) && !has(c.or) {
			missing = append(missing, c.name)
		}
	}
	return missing
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
