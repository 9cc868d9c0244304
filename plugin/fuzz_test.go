package main

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/dist"
)

// FuzzProxyArguments starts portolan-proxy with any arguments, a line each: what
// is taken is a port of this host and one of a container.
func FuzzProxyArguments(f *testing.F) {
	for _, args := range []string{
		"-proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80",
		"-proto udp -host-ip :: -host-port 53 -container-ip fd00::2 -container-port 53 -use-listen-fd",
		"-proto sctp -host-ip ::ffff:127.0.0.1 -host-port 1 -container-ip fe80::1%eth0 -container-port 65535",
		"-use-listen-fd -container-ip 172.17.0.2 -container-port 80",
		"-version", "-h", "--proto=quic", "-host-port -1", "-container-port 0x50", "-container-ip ", "trailing",
	} {
		f.Add(strings.ReplaceAll(args, " ", "\n"))
	}
	f.Fuzz(func(t *testing.T, args string) {
		p, err := parseProxyFlags(strings.Split(args, "\n"), io.Discard)
		if err != nil || p.version {
			return
		}
		assert.Contains(t, []string{"tcp", "udp", "sctp"}, p.proto)
		assert.True(t, p.containerIP.IsValid())
		assert.NotZero(t, p.containerPort)
		assert.LessOrEqual(t, max(p.hostPort, p.containerPort), uint(65535))
		assert.True(t, p.hostPort > 0 || p.useListenFD)
		family, address := p.local()
		host, _, err := net.SplitHostPort(address)
		require.NoError(t, err)
		assert.Equal(t, family == "4", !strings.Contains(host, ":"), "%s %s", family, address)
	})
}

// FuzzUnits gives install-shim any paths. What it takes stands in the units as
// it was given, on a line of its own, and changes no other line.
func FuzzUnits(f *testing.F) {
	f.Add("/usr/local/bin/portolan", "/run/portolan/docker.sock", "/run/docker-engine.sock")
	f.Add("/opt/p", "/run/docker.sock", "/var/run/docker.sock")
	f.Add("/p\nExecStartPre=/bin/sh", "/run/%n", "/run/a b")
	f.Fuzz(func(t *testing.T, program, listen, engine string) {
		i := installer{shimConfig: shimConfig{listen: listen, engine: engine}}
		if i.check() != nil {
			return
		}
		for _, group := range []bool{true, false} {
			unit := i.socket(group)
			assert.Contains(t, unit, "\nListenStream="+listen+"\n")
			for n, line := range sameLines(t, strings.Replace(dist.ShimSocket, "SocketGroup=docker\n", "", 1), strings.Replace(unit, "SocketGroup=docker\n", "", 1)) {
				assert.True(t, strings.HasPrefix(line, "ListenStream="), "line %d: %q", n, line)
			}
		}
		unit, err := i.service(program)
		if err != nil {
			return
		}
		for n, line := range sameLines(t, dist.ShimService, unit) {
			assert.True(t, strings.HasPrefix(line, "ExecStart="), "line %d: %q", n, line)
			assert.Len(t, strings.Fields(line), len(strings.Split(line, " ")), "%q", line)
		}
	})
}

// sameLines are the lines of unit that are not those of the original.
func sameLines(t *testing.T, original, unit string) map[int]string {
	a, b := strings.Split(original, "\n"), strings.Split(unit, "\n")
	require.Len(t, b, len(a))
	others := map[int]string{}
	for i := range b {
		if a[i] != b[i] {
			others[i] = b[i]
		}
	}
	return others
}
