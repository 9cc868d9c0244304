package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/internal/fault"
	"github.com/portolan/portolan/internal/sklookup"
	"github.com/portolan/portolan/internal/store"
)

const defaultSysctlDir = "/proc/sys/net"

// sysctls are the kernel's network settings as files; paths are below dir, as
// ipv4/ip_forward.
type sysctls struct{ dir string }

func (s sysctls) read(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, path))
	return strings.TrimSpace(string(b)), err
}

// set writes value where it is not there already. The error wraps
// os.ErrNotExist if this kernel has no such setting.
func (s sysctls) set(path, value string) error {
	old, err := s.read(path)
	if err != nil || old == value {
		return err
	}
	// No O_CREATE and no O_TRUNC: these are no files.
	f, err := os.OpenFile(filepath.Join(s.dir, path), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	fault.Point("sysctl set")
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("set %s to %s (it is %s): %w; run sysctl -w %[1]s=%[2]s on the host, or give Portolan a %[5]s that it can write",
			sysctlName(path), value, old, err, s.dir)
	}
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", sysctlName(path), value, err)
	}
	return nil
}

// sysctlName is the name that sysctl(8) knows path by: dots in an interface
// name are slashes there.
func sysctlName(path string) string {
	return "net." + strings.NewReplacer("/", ".", ".", "/").Replace(path)
}

// undo puts c back, unless somebody else has changed it since. One without a
// New was changed by the kernel along with another one, and is always put back.
func (s sysctls) undo(c store.Sysctl) error {
	if c.Path == sklookup.ReservedPorts { // a list, of which New is our part
		return sklookup.Unreserve(s.dir, c.New)
	}
	now, err := s.read(c.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil // gone with its interface
	case err != nil:
		return err
	case c.New != "" && now != c.New:
		return nil
	}
	return s.set(c.Path, c.Old)
}
