package main

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/portolan/portolan/internal/hooks"
)

func TestFeatures(t *testing.T) {
	info := map[string]string{"mapper": "nftables", "reason": "the kernel has nftables", "hooks": "on", "hooksReason": "attached to cgroup /sys/fs/cgroup", "ranges": "sk_lookup", "rangesReason": "attached to cgroup /sys/fs/cgroup"}
	assert.Equal(t, []string{
		"other hosts, containers, IPv4 of this host   nftables     the kernel has nftables",
		"IPv6 of this host, [::1] included            BPF hooks    attached to cgroup /sys/fs/cgroup",
		"whom the hooks leave alone, broadcast        proxy        always",
		"ranges of 1024 ports and more are held by    sk_lookup    attached to cgroup /sys/fs/cgroup",
	}, features(info))
	info["hooks"], info["hooksReason"] = "off", "--hooks off"
	info["ranges"], info["rangesReason"] = "sockets", "--ranges sockets"
	assert.Equal(t, []string{
		"other hosts, containers, IPv4 of this host   nftables     the kernel has nftables",
		"IPv6 of this host                            nftables, proxy the proxy where the container has IPv4 alone",
		"[::1]                                        proxy        no BPF hooks: --hooks off",
		"broadcast                                    proxy        always",
		"ranges of 1024 ports and more are held by    sockets      --ranges sockets",
	}, features(info))
}

func TestDaemonSaysWhetherItHasHooks(t *testing.T) {
	d := startDaemon(t, "--hooks", "off")
	stdout, _, status := portolan(t, "version", "--features")
	require.Equal(t, 0, status)
	assert.Contains(t, stdout, "no BPF hooks: --hooks off\n")
	assert.Contains(t, d.log.String(), `hooks=off why-hooks="--hooks off"`)
	d.stop(t)

	h, err := hooks.Open("", nil)
	if err != nil {
		t.Skip("this host has no hooks: ", err)
	}
	require.NoError(t, h.Close())
	d = startDaemon(t)
	stdout, _, status = portolan(t, "version", "--features")
	require.Equal(t, 0, status)
	assert.Contains(t, stdout, " BPF hooks    attached to cgroup "+h.Cgroup()+"\n")
	assert.Contains(t, d.log.String(), "hooks=on")
	d.stop(t)
}

// The managed plugin has CAP_NET_ADMIN and nothing else.
func TestHooksWithoutCapabilities(t *testing.T) {
	asNobody(t, func() error {
		h := openHooks(hooksAuto, slog.New(slog.DiscardHandler))
		assert.Equal(t, "off", h.state())
		assert.Nil(t, h.forPublisher())
		assert.Contains(t, h.reason, "CAP_BPF")
		return h.Close()
	})
}
