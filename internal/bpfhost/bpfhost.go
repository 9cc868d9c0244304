// Package bpfhost is what a host must have for BPF programs that concern all its
// processes: capabilities, the root of a cgroup v2 hierarchy, and a name for the
// network namespace that programs can compare; and how ranges of ports become keys
// of an LPM trie.
package bpfhost

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// NetnsCookie is the kernel's name for this thread's network namespace
// (SO_NETNS_COOKIE, Linux 5.14).
func NetnsCookie() (uint64, error) {
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

// FindRoot is where the root of a cgroup v2 hierarchy is mounted. A hybrid host
// (cgroup v1 with systemd) has it at /sys/fs/cgroup/unified.
func FindRoot() (string, error) {
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
		if root, err := OpenRoot(dir); err == nil {
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

// OpenRoot opens the root of a cgroup v2 hierarchy. Anywhere else the programs
// would see some of the host's processes only.
func OpenRoot(cgroup string) (*os.File, error) {
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

// MissingCaps are the capabilities that programs need which read the kernel's
// structs, and that this process's effective set lacks: CAP_BPF, CAP_PERFMON,
// CAP_NET_ADMIN.
func MissingCaps() (missing []string) {
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
