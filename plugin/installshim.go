package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/dist"
)

const (
	shimService = "portolan-shim.service"
	shimSocket  = "portolan-shim.socket"
	contextName = "portolan"
)

// installer puts the shim in its place, or takes it away.
type installer struct {
	shimConfig
	program string // that the unit runs; "": this one
	booted  string // exists where systemd runs (sd_booted(3))
	units   string // the folder of the administrator's units
	out     io.Writer
}

func newInstallShimCommand() *cobra.Command {
	i := installer{booted: "/run/systemd/system", units: "/etc/systemd/system"}
	var remove bool
	cmd := &cobra.Command{
		Use:   "install-shim",
		Short: "Install the shim as a systemd unit and a docker context",
		Long: `Install "portolan shim" as a systemd unit that runs this file, with a socket unit,
and make a docker context of the name ` + contextName + ` that leads to it. Nothing changes for
those who do not use the context.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i.out = cmd.OutOrStdout()
			if remove {
				return i.remove(cmd.Context())
			}
			return i.install(cmd.Context())
		},
	}
	i.addFlags(cmd)
	cmd.Flags().BoolVar(&remove, "remove", false, "take it all away")
	return cmd
}

func (i *installer) install(ctx context.Context) error {
	if err := i.check(); err != nil {
		return err
	}
	if _, err := os.Stat(i.booted); err != nil {
		return fmt.Errorf("systemd does not run here; have portolan shim started by whatever starts services on this host, and run docker context create %s --docker host=unix://%s",
			contextName, i.listen)
	}
	program := i.program
	if program == "" {
		var err error
		if program, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program's file: %w", err)
		}
	}
	service, err := i.service(program)
	if err != nil {
		return err
	}
	socket := i.socket(dockerGroup() >= 0)
	installed, before := i.installedSocket()
	if before != i.listen && answers(i.listen) {
		// systemd would take the path from whoever listens there, without a word.
		return fmt.Errorf("something else listens on %s; docs/shim.md says how the engine gets another socket", i.listen)
	}
	stop := []string{"systemctl", "stop", shimService}
	if installed != socket {
		// One that runs does not take another path. Where nothing changes it
		// stays, with those who have it mounted.
		stop = append(stop, shimSocket)
	}
	for name, text := range map[string]string{shimService: service, shimSocket: socket} {
		file := filepath.Join(i.units, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write the unit: %w", err)
		}
		fmt.Fprintf(i.out, "wrote %s\n", file)
	}
	for _, args := range [][]string{
		{"systemctl", "daemon-reload"},
		stop,
		{"systemctl", "enable", "--now", shimSocket, shimService},
	} {
		if err := i.do(ctx, args...); err != nil {
			return err
		}
	}
	if before != i.listen {
		removeDead(before)
	}
	verb := "create"
	if i.hasContext(ctx) {
		verb = "update"
	}
	address := "host=unix://" + i.listen
	if err := i.do(ctx, "docker", "context", verb, contextName, "--docker", address); err != nil {
		return err
	}
	fmt.Fprintf(i.out, "Use it:     docker --context %[1]s ps\nAlways:     docker context use %[1]s\nAs others:  docker context create %[1]s --docker %[2]s\n",
		contextName, address)
	if !answers(i.engine) {
		fmt.Fprintf(i.out, "Nothing listens on %s yet: it works as soon as an engine does.\n", i.engine)
	}
	return nil
}

// remove goes on after an error; what is absent need not be removed.
func (i *installer) remove(ctx context.Context) error {
	var errs []error
	removed := false
	_, path := i.installedSocket()
	for _, name := range []string{shimService, shimSocket} {
		file := filepath.Join(i.units, name)
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		removed = true
		errs = append(errs, i.do(ctx, "systemctl", "disable", "--now", name))
		if err := os.Remove(file); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintf(i.out, "removed %s\n", file)
	}
	if removed {
		errs = append(errs, i.do(ctx, "systemctl", "daemon-reload"))
		removeDead(path)
	}
	if i.hasContext(ctx) {
		removed = true
		// -f: one that is in use too, and the default one is in use then.
		errs = append(errs, i.do(ctx, "docker", "context", "rm", "-f", contextName))
	}
	if !removed {
		fmt.Fprintln(i.out, "the shim is not installed")
	}
	return errors.Join(errs...)
}

// check refuses paths that mean something else in a unit.
func (i *installer) check() error {
	for flag, path := range map[string]string{"listen": i.listen, "engine": i.engine} {
		if !filepath.IsAbs(path) || !plainInUnit(path) {
			return usageError{fmt.Errorf("--%s %q: in a unit it must be an absolute path without spaces and quotes", flag, path)}
		}
	}
	if sameSocket(i.listen, i.engine) {
		return usageError{sameSocketError(i.listen)}
	}
	return nil
}

// plainInUnit says whether a path means itself in a unit (systemd.syntax(7)),
// and is one word of a command line there.
func plainInUnit(path string) bool {
	return utf8.ValidString(path) && !strings.ContainsAny(path, "\"'\\%$;") &&
		!strings.ContainsFunc(path, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) })
}

// installedSocket is the socket unit that is there, and the path in it.
func (i *installer) installedSocket() (text, path string) {
	data, err := os.ReadFile(filepath.Join(i.units, shimSocket))
	if err != nil {
		return "", ""
	}
	text = string(data)
	_, after, _ := strings.Cut(text, "\nListenStream=")
	path, _, _ = strings.Cut(after, "\n")
	return text, path
}

// answers says whether somebody listens on the socket.
func answers(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// removeDead removes what systemd leaves of a socket, unless somebody else
// listens there by now.
func removeDead(socket string) {
	conn, err := net.Dial("unix", socket)
	if err == nil {
		_ = conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return
	}
	_ = os.Remove(socket)
	if socket == defaultShim {
		_ = os.Remove(filepath.Dir(socket)) // if it is empty
	}
}

// hidden are the folders that the unit does not show to the program.
var hidden = []string{"/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/"}

// service is the unit of dist, for this program and these flags.
func (i *installer) service(program string) (string, error) {
	if !plainInUnit(program) {
		return "", fmt.Errorf("this program is %q, which cannot stand in a unit; install it as /usr/local/bin/portolan", program)
	}
	for _, dir := range hidden {
		if strings.HasPrefix(program, dir) {
			return "", fmt.Errorf("this program is %s, which a service does not see (ProtectHome, PrivateTmp); install it as /usr/local/bin/portolan and run that", program)
		}
	}
	command := []string{program, "shim"}
	if i.engine != defaultEngine {
		command = append(command, "--engine", i.engine)
	}
	if i.takeOver {
		command = append(command, "--take-over")
	}
	return strings.Replace(dist.ShimService, "/usr/local/bin/portolan shim\n", strings.Join(command, " ")+"\n", 1), nil
}

// socket is the socket unit of dist, for these flags and this host.
func (i *installer) socket(group bool) string {
	text := strings.Replace(dist.ShimSocket, defaultShim, i.listen, 1)
	if !group {
		text = strings.Replace(text, "SocketGroup=docker\n", "", 1)
	}
	return text
}

func (i *installer) hasContext(ctx context.Context) bool {
	return exec.CommandContext(ctx, "docker", "context", "inspect", contextName).Run() == nil
}

// do runs a command, which it shows as somebody would type it.
func (i *installer) do(ctx context.Context, args ...string) error {
	line := strings.Join(args, " ")
	fmt.Fprintf(i.out, "$ %s\n", line)
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w", line, err)
		if text := strings.TrimSpace(string(out)); text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
	}
	return err
}
