// Package deps keeps modules in go.mod until their users exist.
package deps

import (
	_ "github.com/coreos/go-iptables/iptables"
	_ "github.com/docker/go-connections/nat"
	_ "github.com/docker/go-plugins-helpers/network"
	_ "github.com/docker/go-plugins-helpers/sdk"
	_ "github.com/google/nftables"
	_ "github.com/mdlayher/netlink"
	_ "github.com/rogpeppe/go-internal/testscript"
	_ "github.com/spf13/cobra"
	_ "github.com/stretchr/testify/assert"
	_ "github.com/stretchr/testify/require"
	_ "github.com/vishvananda/netlink"
	_ "github.com/vishvananda/netns"
	_ "go.uber.org/goleak"
	_ "golang.org/x/net/bpf"
	_ "golang.org/x/net/dns/dnsmessage"
	_ "golang.org/x/net/ipv6"
	_ "golang.org/x/sync/errgroup"
	_ "golang.org/x/sys/unix"
)
