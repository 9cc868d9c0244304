//go:build upgrade

package e2e

import (
	"os"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The engine of the PATH, which is to be an old one, gives its data to that of
// ENGINE, and the machine starts again: networks are there, containers start again with their ports, and new
// ones get on with them. make upgrade ENGINE=/dir.
func TestUpgrade(t *testing.T) {
	newer := os.Getenv("ENGINE")
	require.NotEmpty(t, newer, "ENGINE is the folder of the newer engine's dockerd, docker-proxy and runc")
	for _, mapper := range []string{"nftables", "iptables"} {
		t.Run(mapper, func(t *testing.T) {
			t.Setenv("ENGINE", "")
			h := newHost(t)
			h.export(&testscript.Env{Values: map[any]any{}})
			require.NoError(t, h.startDaemon(mapper))
			r := &crashRig{host: h, T: t}
			withBystander(r)
			r.docker("update", "--restart", "always", "by")
			r.docker(runC1...)
			r.answers("before", portsOfBoth, dialsOfBoth...)
			old, err := h.engine.Docker("version", "--format", "{{.Server.Version}}")
			require.NoError(t, err)

			require.NoError(t, h.engine.Stop())
			t.Setenv("ENGINE", newer)
			// containerd and runc are other ones, too: the machine starts again.
			require.NoError(t, h.daemon.Stop(syscall.SIGKILL, patience))
			require.NoError(t, h.engine.Reboot())
			require.NoError(t, h.writeWrappers())
			require.NoError(t, h.startDaemon(""))
			require.NoError(t, h.engine.Start())
			now, err := h.engine.Docker("version", "--format", "{{.Server.Version}}")
			require.NoError(t, err)
			t.Logf("from %s to %s", old, now)
			assert.NotEqual(t, old, now)
			r.answers("with its restart policy", portsOfBystander, dialsOfBystander...)
			r.docker("start", "c1")
			r.answers("started by hand", portsOfBoth, dialsOfBoth...)
			require.NoError(t, r.recorded())
			r.docker("rm", "-f", "c1")
			r.docker(runC1...)
			r.answers("made by the newer engine", portsOfBoth, dialsOfBoth...)
			// What the newer engine has changed for itself is no trace of ours.
			h.removeAll()
			require.NoError(t, h.stopDaemon())
			_, err = h.command("host", "portolan", "cleanup", "--state-dir", h.stateDir()).Output()
			require.NoError(t, err)
			h.before = h.take()
			require.NoError(t, h.startDaemon(""))
		})
	}
}
