#!/bin/bash
# Builds portolan for arm64 and runs there, by qemu's emulation of one program's
# processor (qemu-user), the tests that it can: byte order, alignment, the layout of
# what the kernel is given, the numbers of system calls. What it cannot is listed at
# the end. It needs root for a network namespace, and takes some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

qemu=qemu-aarch64-static
if ! command -v "$qemu" >/dev/null; then
	echo "==> Installing qemu-user-static"
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends qemu-user-static >/dev/null ||
		{ echo "arm64: install qemu-user-static and run this again" >&2; exit 1; }
fi
out=build/arm64
mkdir -p "$out"
export CGO_ENABLED=0

echo "==> Building"
GOARCH=arm64 go vet ./...
GOARCH=arm64 go build -trimpath -o "$out/portolan" ./plugin
"$qemu" "$out/portolan" daemon --help >/dev/null

# run PACKAGE FLAGS…: its tests, in a network namespace where this is root.
run() {
	local package=$1 test=$PWD/$out/${1//\//-}.test
	shift
	echo "==> $package"
	GOARCH=arm64 go test -c -o "$test" "./$package"
	# PORTOLAN_NETNSTEST: the tests need not make the namespace, which they would
	# by starting the program again.
	unshare --net sh -c 'ip link set lo up; cd "$1"; shift; PORTOLAN_NETNSTEST=1 exec "$@"' sh \
		"$package" "$qemu" "$test" -test.timeout 5m "$@" >"$test.log" 2>&1 || { cat "$test.log"; exit 1; }
	! grep 'no tests to run' "$test.log" || { echo "arm64: $package has none of these: $*" >&2; exit 1; }
}

run demo
run internal/bpfhost
run shim
run internal/store -test.skip '^Test(LockedByAnotherProcess|KilledWhileWriting|FullDisk|ReadOnly|RemoveOfAMountPoint)$'
run internal/systemd -test.run '^Test(InheritIsNotForAnotherProcess|StoreWanted|OpenStoreWithoutAManager)$'
run proxy -test.skip '^Test(UDPRepliesWaitForASlowDevice|UDPCountsWhatTheSocketDrops|TCPOutlivesASlowLoris|TCPOutlivesABurstBeyondTheFiles)$'
run portmap -test.run '^Test(Allocator(Exact|AllOrNothing|NotOurAddress|Range|Ephemeral|Concurrent)|EphemeralPorts|Parse(Listed|Mapping|Ports|PortsErrors)|PortIndexRandom|Ports|PortMapping|Published|IPT(Plan|PlanChains|Kernel|RestoreText|JumpEdits|Parse|Error|Undo)|Mapping(String|JSON)?|Held|ServedByProxy|JoinMappings(Random)?|SortMappings|Rulesets|SocketSCTP|SocketFiles|Normal|PortBindingJSON|Protos)$'
run driver -test.run '^(Test(BadBodies|MissingIDs|BodyTooLarge|TeardownOfTheUnknown|GlobalScopeMethods|PanicIsAnAnswer|CallsWaitForRestore|CallsAreBounded|Version|CreateNetworkRefused|Options|KnownOptions|Distance|GwAllocCheck|Pools|StatusOfErrors|PortOptions|StreamedRequests|AllPortsAreTwoRanges)|Fuzz(Options|Program))$'
run internal/hooks -test.run '^TestPrefixesAreTheRange$'
run internal/sklookup -test.run '^TestPortSets$'
run internal/firewalld -test.run '^TestZonesWithoutABus$'
run plugin -test.run '^Test(UsageErrors|EveryFlagHasATwinInTheEnvironment|FlagsFromTheEnvironment|ListenSocket.*|HealthIsWhatTheTasksSay|OnlyAStateOfOursIsOne|NoDaemonSaysWhatWasTried|PeriodicSaysTheSameErrorOnce|InspectFormat|List)$'

cat <<'END'
==> All of it works. What does not run under qemu-user, and so is untried on arm64:
  nftables, conntrack, socket diagnosis       it has no netlink of netfilter
  bridges and veths                           its route netlink is in part
  BPF: hooks, long ranges, drop-all filters   it has no bpf(2); the objects are those of
                                              every little-endian machine
  what asks for a socket's cookie             it has options of 4 bytes alone (SO_COOKIE)
  tests that start their own program again    the kernel does not run an arm64 program
  what a socket's queue has dropped           nor has it that option (SO_MEMINFO)
  signals that a test sends itself            the Go runtime may hang or crash after them
  daemons, engines                            all of the above
  the kernel's news (internal/watch)          the first two
END
