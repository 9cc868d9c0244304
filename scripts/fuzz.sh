#!/bin/bash
# Fuzzes every target of the module: `scripts/fuzz.sh [TIME [NAME…]]`, by default
# 5 seconds each, as many at once as there are CPUs. NAME is a package's folder or
# a target's name; TIME is one of go test -fuzztime (10m, 100000x).
#
# An input that fails is left in the package's testdata/fuzz, where every later
# `go test` runs it: commit it with the repair.
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:-5s}
shift || true
wanted=("$@")

# is_wanted FOLDER TARGET
is_wanted() {
	local name
	[[ ${#wanted[@]} -gt 0 ]] || return 0
	for name in "${wanted[@]}"; do
		[[ $1 != "${name%/}" && $2 != "$name" ]] || return 0
	done
	return 1
}

targets() {
	local file target
	git ls-files -co --exclude-standard '*_test.go' | while read -r file; do
		sed -n 's/^func \(Fuzz[A-Za-z0-9]*\)(.*/\1/p' "$file" | while read -r target; do
			! is_wanted "$(dirname "$file")" "$target" || echo "./$(dirname "$file") $target"
		done
	done
}

# fuzz FOLDER TARGET TIME. Inputs that are new are made smaller 20 times, not for
# a minute: most of the targets ask a kernel or a disk.
fuzz() {
	local out
	if ! out=$(go test "$1" -run '^$' -fuzz "^$2\$" -fuzztime "$3" -fuzzminimizetime 20x -parallel 1 2>&1); then
		# Go before 1.27 may fail at the end of the time (golang/go#75804): without
		# an input that fails, with this for its only words.
		if [[ $(grep -v '^fuzz: ' <<<"$out" | sed -n 2p) != '    context deadline exceeded' ]]; then
			printf '%s\n--- %s %s failed\n' "$out" "$1" "$2"
			return 1
		fi
	fi
	printf '%-20s %-20s %s\n' "$1" "$2" "$(sed -n 's/^fuzz: elapsed: //p' <<<"$out" | tail -n 1)"
}
export -f fuzz

list=$(targets)
[[ -n $list ]] || { echo "fuzz: no such target: $*" >&2; exit 2; }
xargs -P "$(nproc)" -L 1 bash -c 'fuzz "$1" "$2" "$0"' "$time" <<<"$list"
