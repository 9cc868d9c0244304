// Package enginetest starts private Docker engines for tests.
//
// An Engine is a dockerd and a containerd of its own in a network namespace of
// its own, which is its host, and a neighbour in another namespace at the other
// end of a wire. Nothing of it is shared with the engine of the machine but the
// kernel. It has a mount namespace of its own, so that what it finds in
// /run/docker/plugins, where every engine looks for plugin sockets, is what is in
// its folder PluginDir: an engine asks every socket there for some of its calls
// (GET /system/df), and waits 15 s for one whose daemon has ended.
//
// # Which engine
//
// The programs (dockerd, containerd, containerd-shim-runc-v2, runc,
// docker-proxy, docker-init) and the docker client are those of the PATH. Where
// the environment has ENGINE, that folder comes before it, and ENGINE_ARGS are
// more flags for every dockerd, separated by blanks.
//
// # Ownership
//
// Everything that New makes ends with the test, whether it passed or not:
// processes, mounts, folders, namespaces. The logs of a test that failed are
// shown.
package enginetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Options say how to start an engine. The zero Options mean dockerd's defaults.
type Options struct {
	// LiveRestore keeps containers running while dockerd does not.
	LiveRestore bool
	// Args are more flags of dockerd, as --userland-proxy=false.
	Args []string
}

// pluginDir is where every engine looks for plugin sockets.
const pluginDir = "/run/docker/plugins"

// How long the parts of an engine may take to start and to stop on a busy
// machine; they take a fraction of a second on an idle one.
const (
	startTime = 60 * time.Second
	stopTime  = 30 * time.Second
)

// Engine is a private Docker engine. Its methods are for one goroutine at a
// time.
type Engine struct {
	// Host is the namespace of the engine, Peer that of its neighbour.
	Host, Peer Namespace
	// Dir holds everything of the engine: data, state, sockets, logs.
	Dir string
	// LiveRestore and Args take effect at the next Start.
	LiveRestore bool
	Args        []string

	t          testing.TB
	containerd *Process
	dockerd    *Process
}

// New starts an engine and its neighbour.
func New(t testing.TB, o Options) *Engine {
	t.Helper()
	dir, err := os.MkdirTemp("", "engine-") // t.TempDir is too long for a socket's path
	require.NoError(t, err)
	e := &Engine{t: t, Dir: dir, LiveRestore: o.LiveRestore, Args: slices.Clone(o.Args)}
	t.Cleanup(e.remove)
	name := fmt.Sprintf("engine-%d-%06x", os.Getpid(), rand.IntN(1<<24))
	require.NoError(t, e.boot(name))
	require.NoError(t, e.Start())
	return e
}

// boot makes the host and its neighbour, and starts containerd.
func (e *Engine) boot(name string) (err error) {
	if e.Host, err = newNamespace(name); err != nil {
		return err
	}
	if e.Peer, err = newNamespace(name + "-peer"); err != nil {
		return err
	}
	if err := connect(e.Host, e.Peer); err != nil {
		return err
	}
	if err := e.Host.setForwarding(slices.Contains(e.extra(), "--firewall-backend=nftables")); err != nil {
		return err
	}
	if err := touchTables(e.Host); err != nil {
		return err
	}
	return e.startContainerd()
}

// Reboot is what a machine goes through that loses its power: every process that
// names Dir in its command line ends, and with it what it has in the kernel; so
// do interfaces, rules and sockets of host and neighbour, and what lies in /run.
// The engine has to be started.
func (e *Engine) Reboot() error {
	for _, p := range []*Process{e.dockerd, e.containerd} {
		if err := p.Stop(syscall.SIGKILL, stopTime); err != nil {
			return err
		}
	}
	for _, ns := range []Namespace{e.Host, e.Peer} {
		if err := ns.remove(); err != nil {
			return err
		}
	}
	err := Poll(stopTime, func() error {
		killTree(e.Dir)
		for _, name := range []string{"exec", "run", "plugins", "docker.pid", "docker.sock", "containerd.sock"} {
			if err := os.RemoveAll(filepath.Join(e.Dir, name)); err != nil {
				return err // a mount of a process that is about to end
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return e.boot(e.Host.Name)
}

// Path is the PATH with which the engine runs.
func Path() string {
	if dir := os.Getenv("ENGINE"); dir != "" {
		return dir + string(os.PathListSeparator) + os.Getenv("PATH")
	}
	return os.Getenv("PATH")
}

// Command is a command that runs in the engine's namespace, with the PATH of
// the engine and DOCKER_HOST set.
func (e *Engine) Command(name string, args ...string) *exec.Cmd {
	// nsenter itself looks for name, in the PATH that it gets here.
	cmd := e.Host.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+Path(), "DOCKER_HOST="+e.Address(), "DBUS_SYSTEM_BUS_ADDRESS="+e.BusAddress())
	return cmd
}

// Address is what DOCKER_HOST must be.
func (e *Engine) Address() string { return "unix://" + e.socket() }

// PluginDir is the folder that is /run/docker/plugins for the engine.
func (e *Engine) PluginDir() string { return filepath.Join(e.Dir, "plugins") }

// Mounts is the file that stands for the engine's mount namespace.
func (e *Engine) Mounts() string { return fmt.Sprintf("/proc/%d/ns/mnt", e.containerd.PID()) }

// BusAddress is where the system bus of the host would be: there is none, unless
// a test starts one, and that of the machine, whose firewalld is not to hear of
// the host's bridges, is out of reach.
func (e *Engine) BusAddress() string { return "unix:path=" + filepath.Join(e.Dir, "bus") }

func (e *Engine) socket() string { return filepath.Join(e.Dir, "docker.sock") }

func (e *Engine) containerdSocket() string { return filepath.Join(e.Dir, "containerd.sock") }

// Start starts dockerd after Stop or Kill, and returns when it answers.
func (e *Engine) Start() error {
	config := filepath.Join(e.Dir, "daemon.json") // not that of the machine
	if err := os.WriteFile(config, []byte("{}\n"), 0o644); err != nil {
		return err
	}
	args := []string{
		"--config-file", config,
		"--data-root", filepath.Join(e.Dir, "data"),
		"--exec-root", filepath.Join(e.Dir, "exec"),
		"--pidfile", filepath.Join(e.Dir, "docker.pid"),
		"--host", e.Address(),
		"--containerd", e.containerdSocket(),
		"--log-level", "warn",
	}
	if e.LiveRestore {
		args = append(args, "--live-restore")
	}
	var err error
	// What containerd runs must see what dockerd mounts.
	cmd := e.Command("nsenter", slices.Concat([]string{"--mount=" + e.Mounts(), "--", "dockerd"}, args, e.extra())...)
	e.dockerd, err = Start("dockerd", filepath.Join(e.Dir, "dockerd.log"), cmd)
	if err != nil {
		return err
	}
	return e.until(e.dockerd, func() error {
		_, err := e.Docker("version", "--format", "{{.Server.Version}}")
		return err
	})
}

// extra are the flags of dockerd that were asked for.
func (e *Engine) extra() []string {
	return slices.Concat(e.Args, strings.Fields(os.Getenv("ENGINE_ARGS")))
}

func (e *Engine) startContainerd() error {
	config := filepath.Join(e.Dir, "containerd.toml")
	// No Kubernetes: it would look for network configuration of the machine.
	text := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[debug]
  level = "warn"
[grpc]
  address = %q
`, filepath.Join(e.Dir, "containerd"), filepath.Join(e.Dir, "run"), e.containerdSocket())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	for _, dir := range []string{e.PluginDir(), pluginDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	var err error
	cmd := e.Command("unshare", "--mount", "--", "sh", "-c", `mount --bind "$1" "$2" && shift 2 && exec "$@"`,
		"sh", e.PluginDir(), pluginDir, "containerd", "--config", config)
	e.containerd, err = Start("containerd", filepath.Join(e.Dir, "containerd.log"), cmd)
	if err != nil {
		return err
	}
	return e.until(e.containerd, func() error {
		_, err := os.Stat(e.containerdSocket())
		return err
	})
}

// until waits for a process to be of use, or to end.
func (e *Engine) until(p *Process, ready func() error) error {
	var notReady error
	err := Poll(startTime, func() error {
		if notReady = ready(); notReady == nil || !p.Alive() {
			return nil
		}
		return notReady
	})
	if err == nil && notReady == nil {
		return nil
	}
	return fmt.Errorf("start %s: %w\n%s", p.Name, notReady, p.Tail(20))
}

// Stop stops dockerd, and its containers too unless LiveRestore is set.
func (e *Engine) Stop() error { return e.dockerd.Stop(syscall.SIGTERM, stopTime) }

// Pause holds up what the engine asks of containerd until Resume.
func (e *Engine) Pause() error { return syscall.Kill(e.containerd.PID(), syscall.SIGSTOP) }

// Resume ends a Pause.
func (e *Engine) Resume() error { return syscall.Kill(e.containerd.PID(), syscall.SIGCONT) }

// Kill ends dockerd as a crash does. Containers go on.
func (e *Engine) Kill() error { return e.dockerd.Stop(syscall.SIGKILL, stopTime) }

// Restart is Stop and Start.
func (e *Engine) Restart() error {
	if err := e.Stop(); err != nil {
		return err
	}
	return e.Start()
}

// Docker runs the docker client and returns what it printed, both streams. The
// error has it too.
func (e *Engine) Docker(args ...string) (string, error) {
	return Run(e.Command("docker", args...))
}

// Exec runs a command in the engine's namespace, as Docker does.
func (e *Engine) Exec(name string, args ...string) (string, error) {
	return Run(e.Command(name, args...))
}

// Run runs a command and returns what it printed, both streams, without the
// last newline. The error has it too.
func Run(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	text := strings.TrimRight(string(out), "\n")
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, text)
	}
	return text, nil
}

// Load makes an image of one static program, FROM scratch, which is also its
// entrypoint.
func (e *Engine) Load(image, program string) error {
	tar := exec.Command("tar", "-C", filepath.Dir(program), "-c", filepath.Base(program))
	archive, err := tar.Output()
	if err != nil {
		return fmt.Errorf("pack %s: %w", program, err)
	}
	cmd := e.Command("docker", "import", "-c", fmt.Sprintf("ENTRYPOINT [%q]", "/"+filepath.Base(program)), "-", image)
	cmd.Stdin = strings.NewReader(string(archive))
	_, err = Run(cmd)
	return err
}

// remove ends everything and shows the logs if the test has failed.
func (e *Engine) remove() {
	if e.dockerd != nil {
		if e.dockerd.Alive() {
			if ids, err := e.Docker("ps", "-aq"); err == nil && ids != "" {
				_, _ = e.Docker(append([]string{"rm", "-f"}, strings.Fields(ids)...)...)
			}
		}
		_ = e.dockerd.Stop(syscall.SIGTERM, stopTime)
	}
	if e.containerd != nil {
		_ = e.containerd.Stop(syscall.SIGTERM, stopTime)
	}
	killTree(e.Dir) // containers that nobody stopped
	for _, p := range []*Process{e.containerd, e.dockerd} {
		if p != nil && e.t.Failed() {
			e.t.Logf("%s said last:\n%s", p.Name, p.Tail(15))
		}
	}
	if err := os.RemoveAll(e.Dir); err != nil {
		e.t.Errorf("remove engine: %v", err)
	}
	for _, ns := range []Namespace{e.Host, e.Peer} {
		if ns.Name == "" {
			continue
		}
		if err := ns.remove(); err != nil {
			e.t.Errorf("remove engine: %v", err)
		}
	}
}
