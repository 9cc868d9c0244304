package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"github.com/portolan/portolan/internal/netnstest"
)

// The daemon under test makes rules and takes abstract sockets: it needs a
// network namespace of its own.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == proxyName {
		os.Exit(runProxy(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	if filepath.Base(os.Args[0]) == programName {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	confine = func([]cap.Value) error { return nil } // these tests make namespaces

	// Not the machine's firewalld.
	os.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere")
	netnstest.Main(m)
}

// portolan runs a command line in this process and returns what a person at a
// terminal would see.
func portolan(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(context.Background(), args, &out, &errs)
	return out.String(), errs.String(), status
}

func TestUsageErrors(t *testing.T) {
	tests := []struct {
		name string
		args string
		env  map[string]string
		want string // the first line on stderr
	}{
		{"an unknown command", "frobnicate", nil,
			`portolan: unknown command "frobnicate"`},
		{"a command with a slip of the pen", "inspekt", nil,
			`portolan: unknown command "inspekt"; did you mean inspect`},
		{"an unknown flag", "ls --frob", nil,
			`portolan ls: unknown flag: --frob`},
		{"an argument too many", "ls web", nil,
			`portolan ls: unknown command "web" for "portolan ls"`},
		{"an argument too few", "inspect", nil,
			`portolan inspect: requires at least 1 arg(s), only received 0`},
		{"a mapper that does not exist", "daemon --mapper ebtables", nil,
			`portolan daemon: invalid argument "ebtables" for "--mapper" flag: must be one of auto, nftables, iptables`},
		{"the same from the environment", "daemon", map[string]string{"PORTOLAN_MAPPER": "ebtables"},
			`portolan daemon: PORTOLAN_MAPPER in the environment: invalid argument "ebtables" for "--mapper" flag: must be one of auto, nftables, iptables`},
		{"hooks by force", "daemon --hooks on", nil,
			`portolan daemon: invalid argument "on" for "--hooks" flag: must be one of auto, off`},
		{"a time without a unit", "daemon --udp-timeout 90", nil,
			`portolan daemon: invalid argument "90" for "--udp-timeout" flag: time: missing unit in duration "90"`},
		{"a time of nothing", "daemon --udp-timeout 0s", nil,
			`portolan daemon: --udp-timeout 0s: must be more than 0`},
		{"a truth that is none", "daemon", map[string]string{"PORTOLAN_IP_FORWARD": "maybe"},
			`portolan daemon: PORTOLAN_IP_FORWARD in the environment: invalid argument "maybe" for "--ip-forward" flag: strconv.ParseBool: parsing "maybe": invalid syntax`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			stdout, stderr, status := portolan(t, strings.Fields(tt.args)...)
			assert.Equal(t, 2, status)
			assert.Empty(t, stdout)
			lines := strings.Split(strings.TrimSpace(stderr), "\n")
			require.Len(t, lines, 2, stderr)
			assert.Equal(t, tt.want, lines[0])
			assert.Regexp(t, `^Run 'portolan[a-z ]* --help' for its arguments and flags\.$`, lines[1])
		})
	}
}

func TestEveryFlagHasATwinInTheEnvironment(t *testing.T) {
	for _, cmd := range newRoot().Commands() {
		stdout, _, status := portolan(t, cmd.Name(), "--help")
		require.Equal(t, 0, status)
		for line := range strings.Lines(stdout) {
			if strings.HasPrefix(strings.TrimSpace(line), "-") {
				_, name, _ := strings.Cut(line, "--")
				name, _, _ = strings.Cut(name, " ")
				if name == "help" {
					continue
				}
				assert.Contains(t, line, "["+envName(name)+"]", "portolan %s", cmd.Name())
			}
		}
	}
}

func TestFlagsFromTheEnvironment(t *testing.T) {
	tests := []struct {
		name string
		args []string
		env  map[string]string
		want map[string]string
	}{
		{"the defaults", nil, nil, map[string]string{
			"socket": "/run/docker/plugins/portolan.sock", "state-dir": "/var/lib/portolan", "mapper": "auto", "hooks": "auto", "ranges": "auto",
			"udp-timeout": "1m30s", "ip-forward": "true", "sysctl-dir": "/proc/sys/net", "log-level": "info", "log-format": "text"}},
		{"the environment sets what the command line leaves out", nil,
			map[string]string{"PORTOLAN_MAPPER": "iptables", "PORTOLAN_HOOKS": "off", "PORTOLAN_RANGES": "sockets", "PORTOLAN_UDP_TIMEOUT": "2m", "PORTOLAN_IP_FORWARD": "false", "PORTOLAN_STATE_DIR": "/srv/p"},
			map[string]string{"mapper": "iptables", "hooks": "off", "ranges": "sockets", "udp-timeout": "2m0s", "ip-forward": "false", "state-dir": "/srv/p"}},
		{"the command line wins", []string{"--mapper", "nftables"},
			map[string]string{"PORTOLAN_MAPPER": "iptables", "PORTOLAN_LOG_LEVEL": "debug"},
			map[string]string{"mapper": "nftables", "log-level": "debug"}},
		{"an empty variable is none", nil,
			map[string]string{"PORTOLAN_MAPPER": "", "PORTOLAN_UDP_TIMEOUT": ""},
			map[string]string{"mapper": "auto", "udp-timeout": "1m30s"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v)
			}
			cmd := newDaemonCommand()
			require.NoError(t, cmd.ParseFlags(tt.args))
			require.NoError(t, fromEnv(cmd))
			for flag, want := range tt.want {
				assert.Equal(t, want, cmd.Flags().Lookup(flag).Value.String(), flag)
			}
		})
	}
}
