#!/bin/bash
# Takes away all that up.sh made, and every rule, device and setting of
# Portolan's. Run it as often as you like.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/demo.sh

portolan=$command
if [[ ! -x $portolan ]]; then
	portolan=bin/portolan
	[[ -x $portolan ]] || make build
fi

if docker version >/dev/null 2>&1; then
	remove_containers
	remove_network
	docker rmi "$image" >/dev/null 2>&1 || true
	if plugin_installed; then
		others=$(users)
		[[ -z $others ]] || die "These networks use the plugin $plugin: $others. Remove them (docker network rm) and run this again."
		# While the plugin still has its state, which says what it changed.
		"$portolan" cleanup
		remove_plugin
	fi
else
	echo "The engine does not answer: containers, network and plugin stay, if there are any." >&2
fi

# What a plugin left that is gone or was killed.
"$portolan" cleanup
rm -f "$command"
echo "Portolan is gone."
