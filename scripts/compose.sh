#!/bin/bash
# Builds docker compose, and buildx with which it builds images, from their Go
# modules into build/tools, for the tests with real clients. It takes three
# minutes on two cores, and no time where that has been done.
set -euo pipefail
cd "$(dirname "$0")/.."

# build MODULE VERSION PACKAGE VARIABLE NAME: the variable is that of the version,
# which compose asks buildx for.
#
# `go install` refuses modules that exclude versions of others, so each is built
# in its own folder, by its own go.sum; / is in no module.
build() {
	local folder
	go mod download -C / "$1@$2"
	folder=$(go list -C / -m -f '{{.Dir}}' "$1@$2")
	CGO_ENABLED=0 go build -C "$folder" -trimpath -ldflags "-s -w -X $1/$4=$2" -o "$PWD/build/tools/$5" "$3"
}

# The newest that Go 1.26.8 builds. They work with API 1.41 (engine 20.10) and up.
build github.com/docker/compose/v5 v5.6.0 ./cmd internal.Version docker-compose
build github.com/docker/buildx v0.38.2 ./cmd/buildx version.Version docker-buildx
