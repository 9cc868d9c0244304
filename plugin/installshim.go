package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

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
	booted string // exists where systemd runs (sd_booted(3))
	units  string // the folder of the administrator's units
	out    io.Writer
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
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's file: %w", err)
	}
	service, err := i.service(program)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{shimService: service, shimSocket: i.socket(dockerGroup() >= 0)} {
		file := filepath.Join(i.units, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write the unit: %w", err)
		}
		fmt.Fprintf(i.out, "wrote %s\n", file)
	}
	for _, args := range [][]string{
		{"systemctl", "daemon-reload"},
		// One that runs does not take another socket.
		{"systemctl", "stop", shimService, shimSocket},
		{"systemctl", "enable", "--now", shimSocket, shimService},
	} {
		if err := i.do(ctx, args...); err != nil {
			return err
		}
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
	return nil
}

// remove goes on after an error; what is absent need not be removed.
func (i *installer) remove(ctx context.Context) error {
	var errs []error
	removed := false
	for _, name := range []string{shimService, shimSocket} {
		file := filepath.Join(i.units, name)
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		removed = true
		errs = append(errs, i.do(ctx, "systemctl", "disable", "--now", name), os.Remove(file))
		fmt.Fprintf(i.out, "removed %s\n", file)
	}
	if removed {
		errs = append(errs, i.do(ctx, "systemctl", "daemon-reload"))
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
		if !filepath.IsAbs(path) || strings.ContainsAny(path, " \t\n\"'\\%$;") {
			return usageError{fmt.Errorf("--%s %q: in a unit it must be an absolute path without spaces and quotes", flag, path)}
		}
	}
	if sameSocket(i.listen, i.engine) {
		return usageError{sameSocketError(i.listen)}
	}
	return nil
}

// service is the unit of dist, for this program and these flags.
func (i *installer) service(program string) (string, error) {
	if strings.ContainsAny(program, " \t\n\"'\\%$;") {
		return "", fmt.Errorf("this program is %q, which cannot stand in a unit; install it as /usr/local/bin/portolan", program)
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
		return fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out)))
	}
	return nil
}
