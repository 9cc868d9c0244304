#!/bin/bash
# Boots a Debian 12 with systemd and Docker in namespaces of its own, and tries
# there what README.md and docs/shim.md tell people to type: the service, the
# shim, the recipe for containers that mount the socket, a reboot, and the way
# back. The commands are taken from those files, so that they stay true.
#
# It needs root, and makes the Debian in build/systemd once, which takes two
# minutes and a mirror (MIRROR=http://…). What runs in it is gone when it ends:
# files in memory, processes and devices in namespaces, and cgroups of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

die() { echo "systemd: $*" >&2; exit 1; }

base=$PWD/build/systemd/root
work=$PWD/build/systemd/work

# make_debian makes the root filesystem that every run starts from.
make_debian() {
	[[ ! -e $base.done ]] || return 0
	if ! command -v debootstrap >/dev/null; then
		echo "==> Installing debootstrap"
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends debootstrap >/dev/null ||
			die "install debootstrap and run this again"
	fi
	echo "==> Making a Debian with systemd and Docker in build/systemd; its log is build/systemd/debootstrap.log"
	rm -rf "$base"
	mkdir -p "$base"
	debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,docker.io,iproute2,iptables,nftables,ca-certificates,procps,busybox-static \
		bookworm "$base" "${MIRROR:-http://deb.debian.org/debian}" >build/systemd/debootstrap.log 2>&1 ||
		die "debootstrap failed: $(tail -n 3 build/systemd/debootstrap.log)"
	rm -f "$base"/var/cache/apt/archives/*.deb
	# There is no terminal to log in at.
	ln -sf /dev/null "$base/etc/systemd/system/console-getty.service"
	ln -sf /dev/null "$base/etc/systemd/system/getty.target"
	mkdir -p "$base/etc/docker" "$base/var/lib/docker" "$base/srv/portolan" "$base/srv/cgroup2"
	echo '{"storage-driver": "vfs"}' >"$base/etc/docker/daemon.json"
	touch "$base.done"
}

if [[ ${1-} != inner ]]; then
	[[ $(id -u) == 0 ]] || die "run this as root: it boots a system in namespaces"
	mkdir -p build/systemd
	exec 9>build/systemd/lock
	flock -n 9 || die "another run is under way"
	make_debian
	make build
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o build/systemd/demo ./demo
	# The mounts below are gone when this process is. What it starts does not
	# hold the lock.
	exec unshare --mount --propagation private bash "$0" inner 9>&-
fi

# --- The machine -------------------------------------------------------------

group=portolan-systemd-$$
unshared=  # process that waits for systemd
init=      # systemd, as this side numbers it
step=booting

# cleanup ends the machine and removes its cgroups, the only thing that is not
# in a namespace.
cleanup() {
	local status=$? h i
	trap - EXIT INT TERM
	set +e
	# Above 128, somebody ended it.
	if [[ $status != 0 && $status -lt 128 ]]; then
		{
			echo "systemd: this failed: $step"
			tail -n 5 "$work/console"
			[[ -z $init ]] || inside 'journalctl -b -n 40 --no-pager -u portolan -u portolan-shim -u init.scope'
		} </dev/null >&2
	fi
	if [[ -n $unshared ]]; then
		# The first process of a PID namespace takes all others along.
		[[ -z $init ]] || kill -KILL "$init" 2>/dev/null
		kill "$unshared" 2>/dev/null
		wait "$unshared" 2>/dev/null
	fi
	for h in "$work"/cgroup/*; do
		[[ -d $h/$group ]] || continue
		for ((i = 0; i < 50; i++)); do
			find "$h/$group" -depth -type d -exec rmdir {} + 2>/dev/null
			[[ -d $h/$group ]] || break
			sleep 0.1
		done
		[[ ! -d $h/$group ]] || echo "systemd: the cgroup $h/$group stays" >&2
	done
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# mount_cgroups mounts all hierarchies of this host here, and makes two cgroups
# in each: one that is the root of the machine's, and below it one for those who
# wait for it or look into it, since cgroup v2 wants no processes beside cgroups.
mount_cgroups() {
	local line name h
	mkdir -p "$work/cgroup"
	# systemd on cgroup v1 needs a hierarchy of this name.
	cut -d: -f2 /proc/self/cgroup >"$work/hierarchies"
	if grep -q . "$work/hierarchies" && ! grep -qx name=systemd "$work/hierarchies"; then
		echo name=systemd >>"$work/hierarchies"
	fi
	while read -r line; do
		name=${line:-unified}
		h=$work/cgroup/${name#name=}
		mkdir "$h"
		case $line in
		'') mount -t cgroup2 cgroup2 "$h" ;;
		name=*) mount -t cgroup -o "none,$line" cgroup "$h" ;;
		*) mount -t cgroup -o "$line" cgroup "$h" ;;
		esac
		mkdir "$h/$group"
		inherit_cpuset "$h/$group"
		mkdir "$h/$group/outside"
		inherit_cpuset "$h/$group/outside"
	done <"$work/hierarchies"
}

# inherit_cpuset: a new cgroup of the cpuset hierarchy has no CPU.
inherit_cpuset() {
	[[ -e $1/cpuset.cpus && -e $1/cpuset.sched_load_balance ]] || return 0
	cat "$1/../cpuset.cpus" >"$1/cpuset.cpus"
	cat "$1/../cpuset.mems" >"$1/cpuset.mems"
}

# join PID FOLDER moves a process into that folder of the machine's cgroups.
join() {
	local h
	for h in "$work"/cgroup/*; do
		echo "$1" >"$h/$group/$2/cgroup.procs"
	done
}

# first_process is what becomes systemd: in its new namespaces, it mounts what a
# container has.
first_process() {
	cat <<-'END'
	set -eu
	work=$1
	cd "$work/root"
	until [[ -e $work/go ]]; do sleep 0.05; done
	hostname portolan
	mount -t proc proc proc
	# Off, as where a host starts: Docker turns it on, and drops what is not its.
	echo 0 >proc/sys/net/ipv4/ip_forward
	# Settings of the kernel are everybody's, but those of the network are ours.
	mount --bind proc/sys proc/sys
	mount --bind proc/sys/net proc/sys/net
	mount -o remount,bind,ro proc/sys
	mount -t sysfs -o ro sysfs sys
	if [[ $(cat "$work/hierarchies") == '' ]]; then
		mount -t cgroup2 cgroup2 sys/fs/cgroup
	else
		mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
		while read -r line; do
			name=${line:-unified}
			mkdir "sys/fs/cgroup/${name#name=}"
			case $line in
			'') mount -t cgroup2 cgroup2 sys/fs/cgroup/unified ;;
			name=*) mount -t cgroup -o "none,$line" cgroup "sys/fs/cgroup/${line#name=}" ;;
			*) mount -t cgroup -o "$line" cgroup "sys/fs/cgroup/$line" ;;
			esac
		done <"$work/hierarchies"
	fi
	mount -t tmpfs -o mode=755 tmpfs dev
	mkdir dev/pts dev/shm
	mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
	ln -s pts/ptmx dev/ptmx
	for device in null zero full random urandom tty; do
		touch "dev/$device"
		mount --bind "/dev/$device" "dev/$device"
	done
	mount -t tmpfs tmpfs dev/shm
	mount -t tmpfs -o mode=755 tmpfs run
	mount -t tmpfs tmpfs tmp
	pivot_root . mnt
	cd /
	umount -l mnt
	exec env -i container=portolan PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
	END
}

# build_machine mounts the machine's files: the Debian, what it writes in memory,
# and what is tested.
build_machine() {
	mkdir -p "$work"
	mount -t tmpfs tmpfs "$work"
	mkdir "$work/upper" "$work/overlay" "$work/root"
	mount -t overlay overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/overlay" "$work/root"
	mount -t tmpfs tmpfs "$work/root/var/lib/docker"
	mkdir -p "$work/root/srv/portolan/bin" "$work/root/srv/image"
	cp bin/portolan "$work/root/srv/portolan/bin/"
	cp -r dist "$work/root/srv/portolan/"
	cp build/systemd/demo "$work/root/srv/image/demo"
	mount_cgroups
	# The hooks want the root of the hierarchy, not of a cgroup namespace. They
	# are for the machine's network namespace alone.
	[[ ! -d $work/cgroup/unified ]] || mount --bind "$work/cgroup/unified" "$work/root/srv/cgroup2"
	first_process >"$work/first-process"
}

# boot starts systemd and waits until all units are up.
boot() {
	local i state=
	rm -f "$work/go"
	(
		join "$BASHPID" .
		exec unshare --pid --fork --kill-child --mount --uts --ipc --net --cgroup bash "$work/first-process" "$work"
	) </dev/null >"$work/console" 2>&1 &
	unshared=$!
	for ((i = 0; i < 100; i++)); do
		init=$(pgrep -P "$unshared") && break
		sleep 0.05
	done
	[[ -n $init ]] || die "the namespaces cannot be made here"
	join "$unshared" outside
	touch "$work/go"
	for ((i = 0; i < 300; i++)); do
		[[ -d /proc/$init ]] || die "systemd ended while it started"
		if [[ $(cat "/proc/$init/comm") == systemd ]]; then
			state=$(inside 'systemctl is-system-running 2>/dev/null || true')
		fi
		case $state in
		running) return 0 ;;
		degraded) die "units failed: $(inside 'systemctl --failed --no-legend')" ;;
		esac
		sleep 0.2
	done
	die "systemd is not up after a minute: $state"
}

# restart_machine reboots it: reboot(2) ends its PID namespace by SIGHUP.
restart_machine() {
	local status=0
	inside 'systemctl reboot' >/dev/null 2>&1 || true
	wait "$unshared" 2>/dev/null || status=$?
	unshared= init=
	[[ $status == 129 ]] || die "the machine ended with $status instead of a reboot"
	boot
}

# inside runs lines of shell in the machine.
inside() {
	(
		join "$BASHPID" outside
		exec nsenter -t "$init" -a env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
			bash -c "set -euo pipefail; cd /srv/portolan; $1"
	)
}

# --- Checks ------------------------------------------------------------------

say() { step=$*; echo "==> $*"; }

# ok LINES: they succeed.
ok() {
	local out
	out=$(inside "$1" 2>&1) && return 0
	blame "$1" "$out"
}

# blame shows lines and what they printed.
blame() {
	sed 's/^/    $ /' <<<"$1" >&2
	sed 's/^/    /' <<<"$2" >&2
	return 1
}

# has LINES TEXT: they succeed and print that text. hasnt: and do not print it.
has() { match "$1" "$2" 0; }
hasnt() { match "$1" "$2" 1; }

match() {
	local out status=0 found=0
	out=$(inside "$1" 2>&1) || status=$?
	grep -qF -- "$2" <<<"$out" || found=1
	[[ $status != 0 || $found != "$3" ]] || return 0
	[[ $3 == 0 ]] && out+=$'\n(without: '$2')' || out+=$'\n(should not have: '$2')'
	blame "$1" "$out"
}

# fails LINES TEXT: they do not succeed, and the error has that text.
fails() { has "! { $1; }" "$2"; }

# soon LINES TEXT: within 10 seconds.
soon() {
	local i
	for ((i = 0; i < 50; i++)); do
		if has "$1" "$2" 2>/dev/null; then return 0; fi
		sleep 0.2
	done
	has "$1" "$2"
}

# block FILE TEXT is the first block of code after that text.
block() {
	local lines
	lines=$(awk -v after="$2" 'index($0, after) { found = 1 } found && /^```/ { if (n++) exit; next } found && n' "$1")
	[[ -n $lines ]] || die "no commands after \"$2\" in $1"
	echo "$lines"
}

# as_unit UNIT LINES… -- LINES…: run in place of the unit's program, the first
# succeed, and the others do not.
as_unit() {
	local unit=$1 text want=works
	shift
	text=$(cat <<-'END'
	packet_socket() { perl -e 'socket(S, 17, 3, 0) or exit 1'; }
	# ptrace(2), PTRACE_ATTACH, and process_vm_readv(2), by number.
	call() { perl -e 'my ($x86, $arm, @args) = @ARGV; $_ = `uname -m`; exit(syscall(/x86_64/ ? $x86 : $arm, map { int } @args) < 0)' "$@"; }
	attach_to_init() { call 101 117 16 1 0 0; }
	read_of_init() { call 310 270 1 0 0 0 0 0; }
	try() { if eval "$2" >/dev/null 2>&1; then echo "works: $2"; else echo "fails: $2"; fi | grep -v "^$1" || true; }
	END
	)
	while [[ $# -gt 0 ]]; do
		if [[ $1 == -- ]]; then want=fails; else text+=$'\n'"try $want $(printf %q "$1")"; fi
		shift
	done
	printf '%s\n' "$text" | inside 'cat >/srv/probe'
	ok "sed -e 's/^Type=.*/Type=oneshot/' -e '/^Restart/d' -e '/^ExecStart=/d' /etc/systemd/system/$unit.service >/run/systemd/system/probe.service
		printf '[Service]\nStandardOutput=truncate:/srv/probe.out\nExecStart=/bin/bash /srv/probe\n' >>/run/systemd/system/probe.service
		systemctl daemon-reload; systemctl start probe"
	ok '[[ ! -s /srv/probe.out ]] || { cat /srv/probe.out; exit 1; }'
	ok 'rm /run/systemd/system/probe.service; systemctl daemon-reload'
}

get() { echo "/srv/image/demo get http://$1/"; }

# client runs docker in a container that has the socket mounted, with the host's
# own program.
client='--entrypoint /usr/bin/sleep -v /usr:/usr:ro -v /usr/lib:/lib:ro -v /usr/lib64:/lib64:ro'

check_service() {
	say "README: Portolan as a service"
	local commands
	commands=$(block README.md 'As a service of the host')
	# There is no Go in there.
	ok "${commands/make build && /}"
	has 'systemctl is-enabled portolan; systemctl is-active portolan' active
	ok 'systemd-analyze verify /etc/systemd/system/portolan.service /etc/systemd/system/portolan.socket'
	has 'systemctl is-enabled portolan.socket; systemctl is-active portolan.socket' active
	has 'stat -c "%a %U" /run/docker/plugins /run/docker/plugins/portolan.sock' '700 root
600 root'
	ok "tar -C /srv/image -c demo | docker import -c 'ENTRYPOINT [\"/demo\"]' - demo"
	ok 'docker run -d --name web --restart always --network mynet -p 8080:80 demo web'

	say "Published ports answer: this host, and another"
	ok 'ip netns add other
		ip link add other0 type veth peer name eth0 netns other
		ip addr add 198.51.100.1/24 dev other0; ip link set other0 up
		ip -n other addr add 198.51.100.2/24 dev eth0; ip -n other link set eth0 up; ip -n other link set lo up'
	soon "$(get 127.0.0.1:8080)" 'hello from'
	has "$(get '[::1]:8080')" 'hello from'
	has "$(get 198.51.100.1:8080)" 'hello from'
	soon "ip netns exec other $(get 198.51.100.1:8080)" 'to 198.51.100.2'
	has 'portolan ls' '8080->80'
	has 'iptables -S FORWARD' '-P FORWARD DROP'

	say "The service's hardening"
	has 'portolan version --features; cat /sys/kernel/btf/vmlinux >/dev/null' 'nftables'
	if [[ -d $work/cgroup/unified ]]; then
		has 'portolan version --features' 'BPF hooks'
	fi
	# NET_BIND_SERVICE, NET_ADMIN, NET_RAW, DAC_READ_SEARCH, SYS_PTRACE, BPF; it
	# started with PERFMON beside them.
	local status='cat /proc/$(systemctl show -p MainPID --value portolan)/status'
	has "$status" 'CapEff:	0000008000083404'
	has "$status" 'CapBnd:	000000c000083404'
	has "$status" 'NoNewPrivs:	1'
	has "$status" 'Seccomp:	2'
	local view='nsenter -m -t $(systemctl show -p MainPID --value portolan)'
	fails "$view touch /etc/portolan /usr/portolan" 'Read-only file system'
	hasnt "touch /root/secret; $view ls /root" secret
	ok 'systemd-analyze security --threshold=28 portolan >/dev/null'
	as_unit portolan \
		'touch /run/docker/plugins/probe /var/lib/portolan/probe && rm /run/docker/plugins/probe /var/lib/portolan/probe' \
		'echo 0 >/proc/sys/net/ipv4/conf/lo/route_localnet' 'iptables -w -nL' 'ip link add probe type bridge' 'ip link del probe' -- \
		'touch /run/probe' 'touch /run/systemd/system/probe' 'touch /var/lib/probe' 'mount -t tmpfs tmpfs /tmp' 'unshare -n true' 'unshare -U true' \
		'touch /tmp/probe; chown 33 /tmp/probe' 'setpriv --reuid 33 true' 'chmod u+s /tmp/probe' 'mknod /tmp/null c 1 3' 'renice -n -5 $$' \
		'packet_socket' 'attach_to_init' 'read_of_init'
	ok 'setpriv --reuid 33 --regid 33 --clear-groups busybox httpd -p 9000 -h /srv'
	fails 'docker run --rm --network mynet -p 9000:80 demo web' 'tcp port 9000 is in use by busybox'
	ok 'pkill -x busybox'

	say "Ports stay while the service is restarted, stopped, and killed"
	ok 'systemctl restart portolan'
	has "$(get 127.0.0.1:8080)" 'hello from'
	ok 'systemctl stop portolan'
	has "$(get 127.0.0.1:8080)" 'hello from'
	has 'systemctl is-active portolan || true' inactive
	has 'portolan ls' '8080->80'
	has 'systemctl is-active portolan' active
	ok 'systemctl kill -s KILL portolan'
	has 'portolan ls' '8080->80'
	has "$(get '[::1]:8080')" 'hello from'
	has 'systemctl show -p NRestarts portolan' 'NRestarts=1'
	ok 'systemctl stop portolan.socket portolan'
	fails 'portolan ls' 'no portolan daemon answers'
	hasnt 'ls /run/docker/plugins' portolan.sock
	has "$(get 127.0.0.1:8080)" 'hello from'
	ok 'systemctl start portolan'
	has 'systemctl is-active portolan.socket' active
	has 'portolan ls' '8080->80'

	check_store

	say "Without the socket unit the service has a socket of its own"
	ok 'systemctl stop portolan.socket portolan; mv /etc/systemd/system/portolan.socket /srv/; systemctl daemon-reload; systemctl start portolan'
	has 'portolan ls' '8080->80'
	ok 'systemctl stop portolan'
	hasnt 'ls /run/docker/plugins' portolan.sock
	ok 'mv /srv/portolan.socket /etc/systemd/system/; systemctl daemon-reload; systemctl start portolan'
	has 'systemctl is-active portolan.socket' active
	has 'portolan ls' '8080->80'

	say "A setting by systemctl edit: the iptables mapper"
	ok 'mkdir /etc/systemd/system/portolan.service.d
		printf "[Service]\nEnvironment=PORTOLAN_MAPPER=iptables\n" >/etc/systemd/system/portolan.service.d/override.conf
		systemctl daemon-reload; systemctl restart portolan'
	has 'portolan version' 'mapper   iptables'
	soon "ip netns exec other $(get 198.51.100.1:8080)" 'hello from'
	ok 'rm -r /etc/systemd/system/portolan.service.d; systemctl daemon-reload; systemctl restart portolan'
	has 'portolan version' 'mapper   nftables'
	soon "ip netns exec other $(get 198.51.100.1:8080)" 'hello from'
}

# check_store has the service away for some seconds, with the proxy for [::1].
check_store() {
	say "Sockets of published ports stay, with who waits at them"
	ok 'mkdir -p /etc/systemd/system/portolan.service.d
		printf "[Service]\nEnvironment=PORTOLAN_HOOKS=off\nRestartSec=5\n" >/etc/systemd/system/portolan.service.d/override.conf
		systemctl daemon-reload; systemctl restart portolan'
	has 'systemctl show -p NFileDescriptorStore portolan' '=2'
	has 'systemctl status portolan' '1 port of 1 endpoint'
	local away='systemctl kill -s KILL portolan
		until [[ $(systemctl show -p SubState --value portolan) == auto-restart ]]; do sleep 0.05; done'
	has "$away; busybox nc -l -p 8080 </dev/null 2>&1 || true" 'in use'
	has "$away; /srv/image/demo get -timeout 30s http://[::1]:8080/; systemctl show -p NRestarts portolan" 'hello from'
	ok 'systemctl restart portolan'
	has "$(get '[::1]:8080')" 'hello from'
	ok 'docker run -d --name many --network mynet -p 3000-3599:3000-3599/udp demo sleep'
	ok 'systemctl restart portolan'
	has 'portolan ls' '3000-3599->3000-3599/udp'
	has "$away; timeout 0.2 /srv/image/demo echo -udp 3599 2>&1 || true" 'address already in use'
	soon 'systemctl is-active portolan || true' active
	# The port is free at once: it is the time that ends the program.
	ok 'docker rm -f many; timeout 0.2 /srv/image/demo echo -udp 3599 || [[ $? == 124 ]]'
	has 'systemctl show -p NFileDescriptorStore portolan' '=2'
	if [[ -d $work/cgroup/unified ]]; then
		ok 'docker run -d --name long --network mynet -p 20000-21999:20000-21999/udp demo echo -udp 20000'
		# Three links of BPF programs, a map, and four sockets.
		has 'portolan ls; systemctl show -p NFileDescriptorStore portolan' '=10'
		has "$away; timeout 0.2 /srv/image/demo echo -udp 21999 2>&1 || true" 'address already in use'
		has "$away; /srv/image/demo send -timeout 30s udp [::1]:20000" '20000 '
		soon 'systemctl show -p NFileDescriptorStore portolan' '=10'
		ok 'docker rm -f long; timeout 0.2 /srv/image/demo echo -udp 21999 || [[ $? == 124 ]]'
		soon 'systemctl show -p NFileDescriptorStore portolan' '=2'
	else
		say "Long ranges are not tried: this host has no cgroup v2"
	fi
	hasnt 'journalctl -b -u portolan -u init.scope' 'FileDescriptorStoreMax'
	hasnt 'journalctl -b -u portolan' 'taken meanwhile'
	ok 'systemctl stop portolan.socket portolan; ! ss -Hltn sport = :8080 | grep .; systemctl start portolan'

	say "A daemon that hangs is restarted"
	ok 'mkdir -p /etc/systemd/system/portolan.service.d
		printf "[Service]\nWatchdogSec=3\nRestartSec=1\n" >/etc/systemd/system/portolan.service.d/override.conf
		systemctl daemon-reload; systemctl restart portolan
		systemctl show -p WatchdogTimestampMonotonic portolan >/srv/watchdog'
	soon '! systemctl show -p WatchdogTimestampMonotonic portolan | diff -q - /srv/watchdog; echo heard' heard
	has 'systemctl show -p NRestarts portolan' 'NRestarts=0'
	ok 'systemctl kill -s STOP --kill-who=main portolan'
	soon 'systemctl show -p NRestarts portolan' 'NRestarts=1'
	has 'portolan ls' '8080->80'
	has 'journalctl -b -u portolan' 'Watchdog timeout'
	ok 'rm -r /etc/systemd/system/portolan.service.d; systemctl daemon-reload; systemctl restart portolan'
}

check_shim() {
	say "docs/shim.md: portolan install-shim"
	has "$(block docs/shim.md '# The shim')" '0.0.0.0:8080->80/tcp'
	hasnt 'docker ps' '8080->80'
	ok 'systemd-analyze verify /etc/systemd/system/portolan-shim.service'
	ok 'systemctl is-enabled portolan-shim.socket portolan-shim.service'
	ok 'systemd-analyze security --threshold=8 portolan-shim >/dev/null'
	as_unit portolan-shim 'true' -- \
		'touch /run/probe' 'touch /run/portolan/probe' 'mount -t tmpfs tmpfs /tmp' 'unshare -n true' 'touch /tmp/probe; chown 33 /tmp/probe' 'setpriv --reuid 33 true' \
		'ls /proc/1/root' 'test -e /proc/sys' 'ip link' 'packet_socket' 'attach_to_init' 'read_of_init'
	local status='cat /proc/$(systemctl show -p MainPID --value portolan-shim)/status'
	has "$status" 'CapBnd:	0000000000000000'
	has "$status" 'NoNewPrivs:	1'
	has 'portolan version' 'shim  '

	say "Its socket is for root and the group docker"
	has 'stat -c "%a %U %G" /run/portolan/docker.sock' '660 root docker'
	has 'setpriv --reuid 33 --regid 33 --groups "$(getent group docker | cut -d: -f3)" docker -H unix:///run/portolan/docker.sock ps' '8080->80'
	fails 'setpriv --reuid 33 --regid 33 --clear-groups docker -H unix:///run/portolan/docker.sock ps' 'permission denied'

	say "It is restarted while a client streams, and started by its socket"
	ok 'docker --context portolan events >/tmp/events 2>&1 & echo $! >/tmp/events.pid'
	soon 'docker rm -f $(docker run -d demo sleep) >/dev/null; cat /tmp/events' 'container destroy'
	ok 'systemctl restart portolan-shim'
	soon 'ps -p $(cat /tmp/events.pid) || echo ended' ended
	has 'docker --context portolan ps' '8080->80'
	ok 'systemctl stop portolan-shim'
	has 'docker --context portolan ps' '8080->80'
	ok 'systemctl is-active portolan-shim'
	ok 'systemctl kill -s KILL portolan-shim'
	has 'docker --context portolan ps' '8080->80'

	say "It is installed again, and taken away"
	ok 'portolan install-shim --take-over'
	has 'docker --context portolan info' "take-over is on"
	fails 'portolan install-shim --listen /run/docker.sock' 'are the same socket'
	fails 'portolan install-shim --listen /var/run/docker.sock --engine /run/docker-engine.sock' 'something else listens'
	fails 'cp bin/portolan /tmp; /tmp/portolan install-shim' 'install it as /usr/local/bin/portolan'
	ok "docker run -d --name mounts --restart always -v /run/portolan/docker.sock:/var/run/docker.sock $client demo infinity"
	ok 'portolan install-shim'
	has 'docker exec mounts docker ps' '0.0.0.0:8080->80/tcp'
	ok 'docker rm -f mounts'
	hasnt 'docker --context portolan info' "take-over is on"
	ok 'docker context use portolan; portolan install-shim --remove'
	shim_is_gone
	has 'portolan install-shim --remove' 'the shim is not installed'
}

shim_is_gone() {
	hasnt 'docker context ls' portolan
	hasnt 'systemctl list-units --all; systemctl list-unit-files; find /etc/systemd' portolan-shim
	hasnt 'ls /run' portolan
}

check_recipe() {
	say "docs/shim.md: for containers that mount the socket"
	ok "docker run -d --name mounts --restart always -v /var/run/docker.sock:/var/run/docker.sock $client demo infinity"
	ok "$(block docs/shim.md 'With systemd:')"
	soon 'docker ps' '0.0.0.0:8080->80/tcp'
	has 'docker --context portolan ps' '0.0.0.0:8080->80/tcp'
	has 'stat -c "%a %U %G" /run/docker.sock /run/docker-engine.sock' '660 root docker'
	local ps='docker exec mounts docker ps'
	soon "$ps" '0.0.0.0:8080->80/tcp'

	say "The socket works on: restarts of shim, service, and engine"
	ok 'systemctl restart portolan-shim'
	has "$ps" '0.0.0.0:8080->80/tcp'
	ok 'systemctl restart portolan'
	has "$ps" '0.0.0.0:8080->80/tcp'
	ok 'systemctl restart docker'
	soon "$ps" '0.0.0.0:8080->80/tcp'

	say "A reboot: sockets before the engine, the service before it, too"
	restart_machine
	soon "$ps" '0.0.0.0:8080->80/tcp'
	soon "$(get 127.0.0.1:8080)" 'hello from'
	has 'portolan ls' web
	hasnt 'journalctl -b' 'ordering cycle'

	say "docs/shim.md: back again"
	ok "$(block docs/shim.md 'Back again:')"
	shim_is_gone
	has 'systemctl show -p Listen docker.socket' 'Listen=/run/docker.sock (Stream)'
	soon 'docker ps' web
	hasnt 'docker ps' '8080->80'
	soon "$(get 127.0.0.1:8080)" 'hello from'
	soon 'docker exec mounts docker ps' web
}

check_legacy() {
	say "A reboot where Docker's rules are iptables-legacy's"
	ok 'update-alternatives --set iptables /usr/sbin/iptables-legacy; update-alternatives --set ip6tables /usr/sbin/ip6tables-legacy'
	restart_machine
	has 'portolan version' 'mapper   iptables'
	ok 'ip netns add other
		ip link add other0 type veth peer name eth0 netns other
		ip addr add 198.51.100.1/24 dev other0; ip link set other0 up
		ip -n other addr add 198.51.100.2/24 dev eth0; ip -n other link set eth0 up; ip -n other link set lo up'
	has 'iptables -S FORWARD' '-P FORWARD DROP'
	soon "ip netns exec other $(get 198.51.100.1:8080)" 'to 198.51.100.2'
}

check_removal() {
	say "README: how to remove every trace"
	ok 'docker rm -f web mounts; docker network rm mynet; systemctl disable --now portolan.socket portolan; portolan cleanup; rm /usr/local/bin/portolan /etc/systemd/system/portolan.{socket,service}'
	hasnt 'nft list ruleset; iptables-save; ip link; ls /run /var/lib /run/docker/plugins' portolan
	has 'systemctl --failed' '0 loaded units'
}

build_machine
say "Booting Debian $(cat "$base/etc/debian_version") with systemd"
boot
soon 'docker version -f "engine {{.Server.Version}}"' engine
check_service
check_shim
check_recipe
check_legacy
check_removal
echo "All of it works."
