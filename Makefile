# What CI and people run. `make` alone lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
PREFIX  ?= /usr/local
GOARCH  ?= $(shell go env GOARCH)
# go run by this file builds for GOARCH only where a target says so.
unexport GOARCH

# A folder whose dockerd, containerd and docker the tests' private engines are
# made of, before those on the PATH.
ENGINE ?=
export ENGINE

LINTER    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.5.0
VULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0

NETNS := ./bench/load/... ./driver/... ./plugin/... ./portmap/... ./proxy/... ./internal/firewalld/... ./internal/hooks/... ./internal/sklookup/... ./internal/watch/...
E2E   := ./internal/enginetest/... ./e2e/...
# Everything else.
UNIT = $(shell go list ./... | grep -vE '/(bench/load|driver|plugin|portmap|proxy|internal/enginetest|internal/firewalld|internal/hooks|internal/sklookup|internal/watch|e2e)(/|$$)')

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/portolan, static, and bin/portolan-proxy, a link to it
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/portolan ./plugin
	ln -sf portolan bin/portolan-proxy

.PHONY: test
test: unit netns fuzz e2e ## everything; installs what it needs on Debian and Ubuntu

.PHONY: deps
deps: ## the tools that tests and demo need, and a running engine
	@./scripts/deps.sh

.PHONY: engine
engine:
	@./scripts/deps.sh engine

.PHONY: unit
unit: deps ## tests that need no privilege
	go vet ./...
	go test -race $(UNIT)
	go test -C bench/plot ./...

# Tests of portmap wait more than they work: its traffic goes at the same time.
TRAFFIC := ^Test.*Traffic$$

.PHONY: netns
netns: deps ## tests in network namespaces of their own (root)
	$(MAKE) --no-print-directory -j3 -O netns-rest netns-traffic netns-no-hooks

.PHONY: netns-rest netns-traffic netns-no-hooks
netns-rest:
	go test -race -skip '$(TRAFFIC)' $(NETNS)
netns-traffic:
	go test -race -run '$(TRAFFIC)' ./portmap
netns-no-hooks:
	PORTOLAN_HOOKS=off go test -race -count=1 -run 'Served|Client|Healthy|Nothing' ./portmap

# A longer run: make fuzz FUZZ='10m driver'
FUZZ ?= 5s

.PHONY: fuzz
fuzz: deps ## every decoder with bad input, 5 seconds each (root)
	./scripts/fuzz.sh $(FUZZ)

.PHONY: e2e
e2e: deps plugin ## tests against private engines (root); ENGINE=/dir has their dockerd
	go test -count=1 -timeout 60m -parallel $$(($$(nproc) + 1)) $(E2E)

# Beside Docker's own driver: make closed NEWER=/dir has a newer dockerd.
.PHONY: closed
closed: deps ## the table of docs/guarantees.md: what Portolan and Docker's driver keep closed
	@test -n '$(NEWER)' || { echo 'usage: make closed NEWER=/folder/of/a/newer/dockerd' >&2; exit 2; }
	go test -count=1 -timeout 5m -run 'TestClosed$$' ./e2e -closed-table ../docs/guarantees.md -closed-newer '$(abspath $(NEWER))'

# All of it takes hours. How long ports come and go, and with which mapper; the log
# of that is build/soak.md.
SOAK ?= 1h
SOAK_MAPPER ?= nftables

.PHONY: soak
soak: deps plugin ## floods; ports that come and go under traffic for SOAK=1h, SOAK_MAPPER=iptables; storm, crash
	mkdir -p build
	PORTOLAN_FLOOD=1000000 go test -count=1 -v -timeout 30m -run '^Test(UDPFlood|SYNFlood|MaxFlows)$$' ./portmap
	SOAK='$(SOAK)' SOAK_MAPPER='$(SOAK_MAPPER)' SOAK_LOG='$(CURDIR)/build/soak.md' go test -tags soak -count=1 -v -timeout 24h -run '^Test(Soak|Stuck|Slow)' ./e2e
	$(MAKE) storm crash

# About an hour; a part of it: make crash CRASH=2/10
CRASH ?= all

.PHONY: crash
crash: deps ## kill daemon and engine after every step, and start again (root)
	PORTOLAN_CRASH='$(CRASH)' go test -count=1 -timeout 3h -run 'Crash$$' ./e2e

.PHONY: storm
storm: deps ## 200 containers started and removed at once, 20 rounds (root)
	PORTOLAN_STORM=200x20 go test -count=1 -timeout 3h -run TestStorm ./e2e

.PHONY: upgrade
upgrade: deps ## the engine of the PATH gives its data to that of ENGINE=/dir (root)
	@test -n '$(ENGINE)' || { echo 'usage: make upgrade ENGINE=/dir' >&2; exit 2; }
	go test -count=1 -v -tags upgrade -run TestUpgrade ./e2e

.PHONY: compose
compose: deps ## docker compose and buildx by the shim; builds both, minutes the first time
	./scripts/compose.sh
	go test -count=1 -timeout 15m -tags compose -run TestCompose ./e2e

.PHONY: systemd
systemd: ## the service, the shim and its recipe under a real systemd (root)
	./scripts/systemd.sh

.PHONY: arm64
arm64: ## build for arm64, and the tests that run under qemu-user (root)
	./scripts/arm64.sh

# Not part of test: both are built first, and the second asks the network.
.PHONY: lint
lint: ## golangci-lint (gosec too) and govulncheck, pinned, built from source
	GOBIN='$(CURDIR)/build/tools' go install $(LINTER)
	build/tools/golangci-lint run ./...
	./scripts/vulncheck.sh $(VULNCHECK)

.PHONY: generate
generate: ## compile the BPF programs again (clang, llvm and libbpf-dev of Debian 12)
	go generate ./internal/hooks ./internal/sklookup

.PHONY: bench
bench: deps build ## start, memory and speed beside the peers; ONLY=ports: a section
	@./scripts/deps.sh bench
	./scripts/bench.sh $(if $(ONLY),-only $(ONLY))

.PHONY: up
up: engine build plugin ## install the plugin here and run the demo
	PREFIX='$(PREFIX)' ./scripts/up.sh

.PHONY: down
down: ## take away all that `make up` made
	PREFIX='$(PREFIX)' ./scripts/down.sh

.PHONY: plugin
plugin: ## build/plugin: root filesystem and config.json; GOARCH=arm64 works
	rm -rf build/plugin
	mkdir -p build/plugin/rootfs/{host/proc/sys/net,run/docker/plugins,var/lib/portolan}
	CGO_ENABLED=0 GOARCH=$(GOARCH) go build -trimpath -ldflags '$(LDFLAGS)' -o build/plugin/rootfs/portolan ./plugin
	cp config.json build/plugin/

.PHONY: plugin-push
plugin-push: push-where engine plugin ## push it: PLUGIN=registry/name:tag
	docker plugin rm -f '$(PLUGIN)' >/dev/null 2>&1 || true
	docker plugin create '$(PLUGIN)' build/plugin
	docker plugin push '$(PLUGIN)'
	docker plugin rm '$(PLUGIN)'

.PHONY: push-where
push-where:
	@test -n '$(PLUGIN)' || { echo 'usage: make plugin-push PLUGIN=registry/name:tag' >&2; exit 2; }

.PHONY: clean
clean: ## remove bin and build
	rm -rf bin build
