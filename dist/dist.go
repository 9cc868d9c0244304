// Package dist has the files that `portolan install-shim` installs.
package dist

import _ "embed"

// ShimUnit is the systemd unit of `portolan shim`.
//
//go:embed portolan-shim.service
var ShimUnit string
