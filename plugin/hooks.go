package main

import (
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/portolan/portolan/internal/hooks"
	"github.com/portolan/portolan/portmap"
)

// The values of --hooks.
const (
	hooksAuto = "auto"
	hooksOff  = "off"
)

// openedHooks is what takes the host's own IPv6 clients past the proxy, if
// anything does, and why.
type openedHooks struct {
	*hooks.Hooks // nil: the proxy serves them
	reason       string
}

// openHooks attaches the hooks where they are wanted and this host has what they
// need. Without them everything works, [::1] at the proxy's speed.
func openHooks(wanted string, log *slog.Logger) openedHooks {
	if wanted == hooksOff {
		return openedHooks{reason: "--hooks off"}
	}
	h, err := hooks.Open("", log)
	if err != nil {
		return openedHooks{reason: oneLine(err)}
	}
	// The loader has read the kernel's types, which are of no more use.
	debug.FreeOSMemory()
	return openedHooks{h, "attached to cgroup " + h.Cgroup()}
}

// forPublisher is a nil interface where there are none.
func (h openedHooks) forPublisher() portmap.Hooks {
	if h.Hooks == nil {
		return nil
	}
	return h.Hooks
}

func (h openedHooks) state() string {
	if h.Hooks == nil {
		return "off"
	}
	return "on"
}

func (h openedHooks) Close() error {
	if h.Hooks == nil {
		return nil
	}
	return h.Hooks.Close()
}

// features are the paths that traffic takes, as `portolan version --features`
// shows what a daemon says of itself.
func features(info map[string]string) (lines []string) {
	add := func(what, path, why string) {
		lines = append(lines, fmt.Sprintf("%-44s %-12s %s", what, path, why))
	}
	kernel := info["mapper"]
	add("other hosts, containers, IPv4 of this host", kernel, info["reason"])
	if info["hooks"] == "on" {
		add("IPv6 of this host, [::1] included", "BPF hooks", info["hooksReason"])
		add("whom the hooks leave alone, broadcast", "proxy", "always")
	} else {
		add("IPv6 of this host", kernel+", proxy", "the proxy where the container has IPv4 alone")
		add("[::1]", "proxy", "no BPF hooks: "+info["hooksReason"])
		add("broadcast", "proxy", "always")
	}
	add(fmt.Sprintf("ranges of %d ports and more are held by", portmap.BlockMin), info["ranges"], info["rangesReason"])
	return lines
}
