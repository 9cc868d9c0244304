#!/bin/bash
# Installs on Debian and Ubuntu what is missing, and starts the Docker engine
# where it does not answer. Says nothing where nothing is to be done; elsewhere
# it says what to install.
#
#   deps.sh          what the tests need
#   deps.sh engine   what the demo needs: Go and a running engine
#   deps.sh bench    what the benchmarks compare with, too
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { echo "deps: $*" >&2; }
die() { say "$@"; exit 1; }
have() { command -v "$1" >/dev/null; }

# A command, and the package that has it.
wanted='
		dockerd docker.io
		iptables iptables'
if [[ ${1-} != engine ]]; then
	wanted+='
		nft nftables
		conntrack conntrack
		busybox busybox-static
		firewalld firewalld
		ufw ufw
		dbus-daemon dbus
		docker-registry docker-registry
		ip iproute2
		nsenter util-linux
		gcc gcc'
fi

if [[ ${1-} == bench ]]; then
	wanted+='
		nginx libnginx-mod-stream
		haproxy haproxy
		socat socat
		ss iproute2'
fi

missing_packages() {
	while read -r command package; do
		[[ -z $command ]] || have "$command" || echo "$package"
	done <<<"$wanted"
	# From Debian 13 on, the docker command is a package of its own.
	if ! have docker && have dockerd; then echo docker-cli; fi
	if [[ $wanted == *gcc* && ! -e /usr/include/stdio.h ]]; then echo libc6-dev; fi
}

# install_quietly installs a package without starting the service that it
# brings: the test needs the program, and nobody asked for a registry.
install_quietly() {
	local policy=/usr/sbin/policy-rc.d made=
	if [[ ! -e $policy ]]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
		made=1
	fi
	local ok=0
	apt_install "$1" || ok=1
	[[ -z $made ]] || rm -f "$policy"
	if have systemctl; then systemctl disable "$1" >/dev/null 2>&1 || true; fi
	if have update-rc.d; then update-rc.d "$1" disable >/dev/null 2>&1 || true; fi
	return $ok
}

apt_install() {
	local log
	log=$(mktemp)
	if ! DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		rm -f "$log"
		return 1
	fi
	rm -f "$log"
}

install_missing() {
	local packages
	mapfile -t packages < <(missing_packages)
	[[ ${#packages[@]} -gt 0 ]] || return 0
	have apt-get || die "install these (Debian's names) and run this again: ${packages[*]}"
	[[ $(id -u) == 0 ]] || die "missing: ${packages[*]}; run this as root, or: sudo apt-get install ${packages[*]}"
	say "installing ${packages[*]}"
	apt-get update -qq >/dev/null 2>&1 || say "apt-get update failed; trying with what is known"
	local p
	for p in "${packages[@]}"; do
		if [[ $p == docker-registry || $p == firewalld || $p == ufw || $p == libnginx-mod-stream || $p == haproxy ]]; then
			install_quietly "$p" || die "could not install $p"
		else
			apt_install "$p" || die "could not install $p"
		fi
	done
	# Where docker.io came without the docker command.
	hash -r
	if ! have docker; then apt_install docker-cli || die "could not install docker-cli"; fi
}

check_go() {
	have go || die "install Go 1.26 or newer: https://go.dev/dl/"
	local v
	v=$(go env GOVERSION)
	v=${v#go1.}
	# From 1.21 on, go fetches the version that go.mod names.
	[[ ${v%%[!0-9]*} -ge 21 ]] || die "Go 1.$v is too old; install 1.26 or newer: https://go.dev/dl/"
}

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

wait_for_engine() {
	local i
	for ((i = 0; i < 100; i++)); do
		if engine_answers; then return 0; fi
		sleep 0.2
	done
	return 1
}

dockerd_runs() {
	local pid
	pid=$(cat /var/run/docker.pid 2>/dev/null) && kill -0 "$pid" 2>/dev/null
}

start_service() {
	if [[ -d /run/systemd/system ]]; then
		systemctl start docker
	elif [[ -x /etc/init.d/docker ]]; then
		service docker start >/dev/null 2>&1
	else
		return 1
	fi
}

start_engine() {
	if engine_answers; then return 0; fi
	[[ -z ${DOCKER_HOST-} ]] || die "the engine at DOCKER_HOST=$DOCKER_HOST does not answer; start it or unset DOCKER_HOST"
	[[ $(id -u) == 0 ]] || die "the engine does not answer (to you); run this as root"
	say "starting the Docker engine"
	local log=/var/log/portolan-dockerd.log
	if start_service || dockerd_runs; then
		if wait_for_engine; then return 0; fi
	fi
	if ! dockerd_runs; then
		setsid dockerd >"$log" 2>&1 </dev/null &
		if wait_for_engine; then
			say "dockerd runs in the background; its log is $log"
			return 0
		fi
		tail -n 5 "$log" >&2
	fi
	die "the engine does not start; see 'journalctl -u docker' or $log"
}

check_go
install_missing
start_engine
