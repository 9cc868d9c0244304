package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portolan/portolan/driver"
	"github.com/portolan/portolan/internal/firewalld"
	"github.com/portolan/portolan/internal/store"
	"github.com/portolan/portolan/portmap"
)

// managedStates are the state folders of managed plugins, as the engine names
// them: where a plugin was disabled, they say which sysctls to put back.
const managedStates = "/var/lib/docker/plugins/*/propagated-mount"

// enginePIDFile has the process ID of the machine's own engine.
const enginePIDFile = "/var/run/docker.pid"

type cleanupConfig struct {
	socket    *string
	stateDir  string
	sysctlDir string
	force     bool
	out       io.Writer
}

func newCleanupCommand() *cobra.Command {
	var c cleanupConfig
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove every rule, device, setting and file of Portolan's",
		Long: `Remove every rule, device and file of Portolan's from this host, and put back
the settings that it changed, with or without a daemon. A daemon that runs goes
on, without any network; stop it and clean up again to remove its files too.

Containers that are on a network of Portolan's are cut off by it, so cleanup
refuses to where there are any. Networks that docker network ls still shows
afterwards are to be removed with docker network rm.`,
		Args: cobra.NoArgs,
	}
	c.socket = addSocketFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&c.stateDir, "state-dir", defaultStateDir, "where the daemon kept its state")
	f.StringVar(&c.sysctlDir, "sysctl-dir", findSysctlDir(), "the host's /proc/sys/net")
	f.BoolVar(&c.force, "force", false, "cut off the containers that are on a network of Portolan's")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := needNetAdmin(); err != nil {
			return err
		}
		c.out = cmd.OutOrStdout()
		daemon, err := findDaemon(cmd.Context(), *c.socket)
		switch {
		case err == nil:
			return c.withDaemon(cmd.Context(), daemon)
		case errors.Is(err, errNoDaemon):
			return c.withoutDaemon(err)
		}
		return err
	}
	return cmd
}

// withDaemon has the daemon do it: it would put back what is taken from under
// it.
func (c *cleanupConfig) withDaemon(ctx context.Context, daemon *client) error {
	endpoints, err := daemon.list(ctx)
	if err != nil {
		return err
	}
	nameOwners(ctx, endpoints)
	before, err := driver.Interfaces()
	if err != nil {
		return err
	}
	// The daemon knows of those whose interface is on its way into a container,
	// and the kernel of those that a damaged state has lost.
	alive := inContainers(before)
	for _, ep := range endpoints {
		if ep.Sandbox != "" {
			alive[ep.ID] = owner(ep).ContainerName
		}
	}
	if err := c.refuse(alive); err != nil {
		return err
	}
	if err := daemon.cleanup(ctx); err != nil {
		return err
	}
	for _, i := range before {
		fmt.Fprintf(c.out, "remove interface %s\n", i.Name)
	}
	fmt.Fprintf(c.out, "The daemon has removed all rules and put back all settings. It goes on at %s.\n", daemon.socket)
	return nil
}

// withoutDaemon goes by what is in the kernel and, for sysctls, by the state
// that a daemon left. It goes on after an error.
func (c *cleanupConfig) withoutDaemon(noDaemon error) error {
	// So that none starts meanwhile. One that runs and does not answer is an
	// error, which says where it listens.
	lock, err := lockNamespace("(none: portolan cleanup)", c.stateDir)
	if err != nil {
		return fmt.Errorf("%w, but %w", noDaemon, err)
	}
	defer lock.Close()
	if lock.taken != "" {
		fmt.Fprintf(c.out, "cannot make sure that no portolan daemon runs: %s\n", lock.taken)
	}

	ours, err := driver.Interfaces()
	if err != nil {
		return err
	}
	if err := c.refuse(inContainers(ours)); err != nil {
		return err
	}

	lines := &lineHandler{out: c.out}
	log := slog.New(lines)
	dirs := c.stateDirs()
	var errs []error
	var changed []store.Sysctl
	for _, dir := range dirs {
		sysctls, err := readSysctls(dir)
		changed = append(changed, sysctls...)
		errs = append(errs, err)
	}
	// Bridges before rules: what is closed by a rule is gone before the rule is.
	errs = append(errs, driver.Cleanup(log, c.sysctlDir, changed), portmap.Cleanup(log), leaveZones(ours))
	if errors.Join(errs...) == nil {
		// Until all is well the state is needed: it says what is to be done.
		for _, dir := range dirs {
			log.Info("remove state", "folder", dir)
			errs = append(errs, store.Remove(dir))
		}
		errs = append(errs, c.removeSocket(log))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if lines.count == 0 {
		fmt.Fprintln(c.out, "there is nothing of Portolan's to remove")
	}
	return nil
}

// leaveZones takes bridges out of their zones of firewalld, where it runs.
func leaveZones(ours []driver.Interface) (err error) {
	zones := firewalld.Open(firewalld.Config{})
	defer closing(&err, zones.Close)
	for _, i := range ours {
		if i.Network != "" {
			err = errors.Join(err, zones.Remove(i.Name))
		}
	}
	return err
}

// inContainers are the IDs of endpoints whose containers would be cut off.
func inContainers(ours []driver.Interface) map[string]string {
	alive := make(map[string]string)
	for _, i := range ours {
		if i.InContainer {
			alive[i.Endpoint] = ""
		}
	}
	return alive
}

// refuse stops where there are endpoints in containers, whose names it shows.
func (c *cleanupConfig) refuse(alive map[string]string) error {
	if len(alive) == 0 || c.force {
		return nil
	}
	var texts []string
	for _, id := range slices.Sorted(maps.Keys(alive)) {
		text := shortID(id)
		if name := alive[id]; name != "" {
			text += " (" + name + ")"
		}
		texts = append(texts, text)
	}
	return fmt.Errorf("containers are on Portolan's networks, by the endpoints %s; stop them, or cut them off with --force",
		strings.Join(texts, ", "))
}

// stateDirs are those state folders that exist: the daemon's, and those of
// managed plugins.
func (c *cleanupConfig) stateDirs() []string {
	var dirs []string
	if _, err := os.Stat(filepath.Join(c.stateDir, "lock")); err == nil {
		dirs = append(dirs, c.stateDir)
	}
	if !isHostNamespace() {
		return dirs
	}
	managed, _ := filepath.Glob(managedStates) // fails only on a bad pattern
	for _, dir := range managed {
		if isState(filepath.Join(dir, "state.json")) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// isHostNamespace says whether this is the network namespace of the machine's
// own engine, which is init's, as far as that can be known: where init's cannot be
// seen (ptrace(2)), that of the engine itself is looked at.
func isHostNamespace() bool {
	ours, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return true
	}
	pid, _ := os.ReadFile(enginePIDFile)
	for _, of := range []string{"1", strings.TrimSpace(string(pid))} {
		if host, err := os.Stat(filepath.Join("/proc", of, "ns/net")); err == nil {
			return os.SameFile(ours, host)
		}
	}
	return true
}

// isState says whether a file is a state of ours. Other plugins may well have a
// file of that name, and opening it as a state would move it out of the way.
func isState(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	const magic = `{"format":"portolan-state"`
	head := make([]byte, len(magic))
	_, err = io.ReadFull(f, head)
	return err == nil && string(head) == magic
}

// readSysctls is what the daemon of a state folder changed.
func readSysctls(dir string) ([]store.Sysctl, error) {
	st, err := store.Open(dir, nil)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	return st.Sysctls(), nil
}

// removeSocket removes the socket file that a killed daemon left.
func (c *cleanupConfig) removeSocket(log *slog.Logger) error {
	path := *c.socket
	if path == "" {
		path = defaultSocket
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	log.Info("remove socket", "path", path)
	if err := removeStale(path); err != nil {
		return fmt.Errorf("remove socket %s: %w", path, err)
	}
	return nil
}
