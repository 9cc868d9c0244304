#!/bin/bash
# Builds the programs and measures: bench.sh [-o docs/benchmarks.md] [-quick]
# [-only SECTION]. It takes a quarter of an hour, and the machine should have
# nothing else to do.
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
unset CGO_ENABLED

exec build/bench/bench "$@"
