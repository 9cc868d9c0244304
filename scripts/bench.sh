#!/bin/bash
# Builds the programs and measures: bench.sh [-o docs/benchmarks.md] [-quick]
# [-only SECTION]. It takes half an hour, and the machine should have nothing
# else to do.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

[[ $(id -u) == 0 ]] || { echo "bench: run this as root: it starts Docker engines" >&2; exit 1; }

version=$(git describe --tags --always --dirty 2>/dev/null || echo dev)
export CGO_ENABLED=0
mkdir -p build/bench
go build -trimpath -ldflags "-s -w -X main.version=$version" -o build/bench/portolan ./plugin
go build -trimpath -ldflags '-s -w' -o build/bench/demo ./demo
go build -trimpath -o build/bench/bench ./bench
go build -C bench/plot -trimpath -o ../../build/bench/plot .
unset CGO_ENABLED

# The BPF hooks need a hierarchy of cgroup v2; one that is mounted here is
# nobody else's.
if ! grep -q ' - cgroup2 ' /proc/self/mountinfo; then
	mkdir -p build/bench/cgroup
	exec unshare --mount bash -c 'mount -t cgroup2 cgroup2 build/bench/cgroup && exec build/bench/bench "$@"' bench "$@"
fi
exec build/bench/bench "$@"
