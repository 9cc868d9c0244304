// Package dist has the systemd units that `portolan install-shim` installs.
package dist

import _ "embed"

// ShimService is the unit of `portolan shim`, ShimSocket that of its socket.
var (
	//go:embed portolan-shim.service
	ShimService string
	//go:embed portolan-shim.socket
	ShimSocket string
)
