# What up.sh and down.sh share. Sourced, not run.

plugin=portolan:latest
network=portolan-demo
image=portolan-demo
dns=portolan-demo-dns
web=portolan-demo-web
command=${PREFIX:-/usr/local}/bin/portolan

die() {
	echo "$*" >&2
	exit 1
}

# quiet runs a command and shows what it said only if it fails.
quiet() {
	local out
	if ! out=$("$@" 2>&1); then
		echo "$out" >&2
		return 1
	fi
}

# users lists the networks of the plugin, other than the demo's.
users() {
	docker network ls --filter "driver=$plugin" --format '{{.Name}}' | { grep -vx "$network" || true; } | paste -sd' '
}

remove_containers() { docker rm -f "$dns" "$web" >/dev/null 2>&1 || true; }

remove_network() {
	docker network inspect "$network" >/dev/null 2>&1 || return 0
	quiet docker network rm "$network" ||
		die "Other containers are on the network $network: take them off (docker network disconnect) and run this again."
}

plugin_installed() { docker plugin inspect "$plugin" >/dev/null 2>&1; }

# remove_plugin does so in good order: with -f, the engine would leave the
# networks of others behind without their driver.
remove_plugin() {
	plugin_installed || return 0
	local others
	others=$(users)
	[[ -z $others ]] || die "These networks use the plugin $plugin: $others. Remove them (docker network rm) and run this again."
	if [[ $(docker plugin inspect -f '{{.Enabled}}' "$plugin") == true ]]; then
		quiet docker plugin disable "$plugin"
	fi
	quiet docker plugin rm "$plugin"
}
