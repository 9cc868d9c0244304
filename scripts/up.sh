#!/bin/bash
# Installs build/plugin in the local engine as portolan:latest, runs the demo on
# a network of it and shows that it works. Run it as often as you like: it
# replaces what an earlier run left.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/demo.sh

step=
say() { step=$*; echo "==> $*"; }
finish() {
	local status=$?
	[[ $status == 0 ]] || cat >&2 <<-END

	This failed: $step
	Run 'make up' again when the cause is gone, or 'make down' to take everything away.
	The plugin's log is in the engine's: journalctl -u docker | grep plugin= (or dockerd's log file).
	END
	return "$status"
}
trap finish EXIT

show() {
	echo "\$ ${*@Q}" | sed "s/'\([A-Za-z0-9@%+=:,.\/_-]*\)'/\1/g"
	"$@" | sed 's/^/    /'
}

say "Installing the plugin $plugin"
remove_containers
remove_network
remove_plugin
quiet docker plugin create "$plugin" build/plugin
quiet docker plugin enable "$plugin"

say "Installing the command $command"
quiet install -D -m 0755 bin/portolan "$command"

say "Making the image $image from ./demo"
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o build/image/demo ./demo
docker rmi "$image" >/dev/null 2>&1 || true # else an older one stays, without a name
tar -C build/image -c demo | quiet docker import -c 'ENTRYPOINT ["/demo"]' - "$image"

# The host's first address, before the network adds more.
own=$(hostname -I | cut -d' ' -f1)

say "Making the network $network"
ipv6=
if [[ $(cat /proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || echo 1) == 0 ]]; then
	ipv6=1
fi
show docker network create -d "$plugin" ${ipv6:+--ipv6 --subnet fd70:6f72:746f:6c61::/64} "$network"

say "Starting a DNS server and a web server on it"
show docker run -d --name "$dns" --network "$network" -p 53530:53/udp -p 53530:53/tcp "$image" dns
show docker run -d --name "$web" --network "$network" -p 8080:80 "$image" web

demo=build/image/demo
hosts=(127.0.0.1)
[[ -z $ipv6 ]] || hosts+=('[::1]')
case $own in
'') ;; # no network but lo
*:*) hosts+=("[$own]") ;;
*) hosts+=("$own") ;;
esac

# They run, but may not listen yet.
for ((i = 0; i < 50; i++)); do
	if $demo query 127.0.0.1:53530 www.portolan.test >/dev/null 2>&1 &&
		$demo get http://127.0.0.1:8080/ >/dev/null 2>&1; then
		break
	fi
	sleep 0.1
done

say "Asking both from this host"
for host in "${hosts[@]}"; do
	show $demo query "$host:53530" www.portolan.test A
	show $demo query -tcp "$host:53530" www.portolan.test A
	show $demo get "http://$host:8080/"
done

say "What Portolan says of it"
show "$command" ls
show "$command" inspect -f '{{.ContainerName}}: {{json .NetworkSettings.PortMapping}}' "$dns" "$web"

echo
echo "It works. Use it:  docker network create -d $plugin mynet"
echo "                   docker run --network mynet -p 10000-19999:10000-19999/udp IMAGE"
echo "Look at it:        portolan ls"
echo "Remove it:         make down"
