#!/bin/sh
# irmapdb-hook: CRIU executes this file at every action of a dump and of a restore.
# `irmapdb hook --install` makes it, and `--uninstall` removes it. Do not edit.
[ "${CRTOOLS_SCRIPT_ACTION:-}" = pre-dump ] || exit 0

# A failure of irmapdb never fails the dump, unless `strict` is set. docs/architecture.md of irmapdb
# describes the requests to the service.
program=@program@
python=@python@
packages=@packages@
config=@config@
run=@run@
wait_s=1
search_wait_s=10

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
unset IFS
# bash takes errexit and nounset from SHELLOPTS.
set -f +eu
umask 077
trap : HUP INT TERM

say() {
	printf 'irmapdb-hook: %s\n' "$1" >&2
}

is_number() {
	case ${1:-x} in *[!0-9]*) return 1 ;; esac
}

# The start time of process $1, in $start.
read_start() {
	start=''
	is_number "$1" && { IFS= read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
	set -- ${stat##*[)] }
	start=${20}
	is_number "$start"
}

# CRIU 4.1.1 executes an action script of a configuration file twice for each action.
is_done() {
	{ read -r now _ </proc/uptime; } 2>/dev/null || return 1
	now=${now%%.*}
	read_start "$PPID" || return 1
	criu_start=$start
	mark=$run/hook-$PPID-$criu_start-$1
	{ read -r since <"$mark"; } 2>/dev/null && is_number "$since" && [ $((now - since)) -lt 10 ]
}

remember() {
	[ -n "${mark:-}" ] || return
	[ -d "$run" ] || mkdir -m 700 "$run"
	printf '%s\n' "$now" >"$mark"
} 2>/dev/null

# Whether $program and its interpreter are there: a node need not have Python.
can_start() {
	[ -f "$program" ] && [ -x "$program" ] || return 1
	{ IFS= read -r line <"$program"; } 2>/dev/null || return 0
	case $line in
	'#!'*)
		set -- ${line#??}
		[ -x "${1:-}" ]
		;;
	esac
}

# Asks the service about the tree of task $1: its reply in $code and $said.
# Returns 1 if no service runs, 2 if it does not reply in time.
ask_service() {
	[ -p "$run/warm.fifo" ] && [ -n "${criu_start:-}" ] || return 1
	{ read -r pid since <"$run/warm.pid"; } 2>/dev/null || return 1
	read_start "$pid" && [ "$start" = "$since" ] || return 1
	images=${CRTOOLS_IMAGE_DIR:-}
	images=${images##*/fd/}
	is_number "$images" || images=-
	name=reply-$$-$criu_start
	{ mkfifo -m 600 "$run/$name"; } 2>/dev/null || return 1
	reply='' action=pre-dump
	can_start || action=search
	# Opened for reading and writing, a FIFO never makes the opener wait.
	{ converse "1 $action $1 $PPID $criu_start $images $name" 4<"$run/$name"; } 3<>"$run/$name"
	# The service removes it when it replies.
	[ ! -e "$run/$name" ] || rm -f "$run/$name" 2>/dev/null
	code=${reply%% *}
	said=${reply#* }
	is_number "$code" || return 2
}

# Writes the request $1, and reads one line of the FIFO in $reply. To execute a program takes a good
# part of the time that the service needs: so `sleep` is the only one. An output redirection makes a
# regular file if the FIFO is missing: so the FIFO is opened by its name only for reading, and then
# through /proc/self/fd.
converse() {
	# Another process, as the FIFO of a stopped service may be full. While the service lives, it
	# writes to the FIFO too, so the open for reading does not wait.
	{
		# By itself: dash keeps a copy of what one exec closes until its last file is open.
		exec 3>&- 4<&-
		exec 5<"$run/warm.fifo" >/proc/self/fd/5 && printf '%s\n' "$1"
	} 2>/dev/null &
	sender=$!
	# The FIFO is at its end when no process has it open for writing any more.
	sleep "$wait_s" >&3 2>&3 4<&- &
	timer=$!
	exec 3>&-
	IFS= read -r reply <&4
	if [ "${reply%% *}" = 3 ]; then
		# The service searches now, because there is no program here that can.
		asked=$timer
		{
			sleep "$search_wait_s" >&3 2>&3 4<&- &
			timer=$!
		} 3>/proc/self/fd/4
		end_processes "$sender" "$asked"
		reply=''
		IFS= read -r reply <&4
	fi
	end_processes "$sender" "$timer"
}

# Only children of this shell: one that has ended may be gone, and its number another process's. By
# the one signal for which a shell that was forked just now has no trap. bash reports the end of a
# child by a signal, unless this is in a wait.
end_processes() {
	for process; do
		is_child "$process" || continue
		kill -KILL "$process"
		wait "$process"
	done
} 2>/dev/null

is_child() {
	{ IFS= read -r stat <"/proc/$1/stat"; } || return 1
	set -- ${stat##*[)] }
	[ "${2:-}" = "$$" ]
}

# Puts the image that the service proved last for the tree of task $1 into the work dir, the cwd.
place_image() {
	read_start "$1" && image=$run/image-$1-$start && [ -s "$image" ] || return 1
	# Only if root alone can put a link in the way.
	set -- $(ls -ldn . 2>/dev/null)
	case "${1:-} ${3:-}" in d????-??-*' 0') ;; *) return 1 ;; esac
	[ ! -d irmap-cache ] || return 1
	# A name that irmapdb removes the next time, if this process is killed.
	new=$(printf '.irmap-cache.%016x.irmapdb-new' $$)
	(
		set -C
		if cat "$image" >"$new" && mv -f "$new" irmap-cache; then exit 0; fi
		rm -f "$new"
		exit 1
	) 2>/dev/null
}

is_strict() {
	case ${IRMAPDB_HOOK_STRICT:-} in
	'') ;;
	1 | [Tt][Rr][Uu][Ee] | [Yy][Ee][Ss]) return 0 ;;
	*) return 1 ;;
	esac
	[ -f "$config" ] && [ -r "$config" ] || return 1
	section='' found=1
	while IFS= read -r line || [ -n "$line" ]; do
		set -- ${line%%#*}
		IFS=
		line=$*
		unset IFS
		case $line in
		'['*) section=$line ;;
		strict=true) [ "$section" != '[hook]' ] || found=0 ;;
		hook.strict=true) [ -n "$section" ] || found=0 ;;
		esac
	done <"$config"
	return $found
}

# A line for `irmapdb hook --status`, if neither the service nor $program wrote one: the outcome $1
# and the text $2. irmapdb/criu/hook_runs.py describes it. Nor do they remove the old files then.
record() {
	[ -d "$run" ] || mkdir -m 700 "$run"
	[ -z "$(find "$run/hook.log" -size +1024k)" ] || mv -f "$run/hook.log" "$run/hook.log.old"
	find "$run" \( -name 'hook-[0-9]*' -o -name 'reply-*' \) -mmin +1 -exec rm -f {} +
	[ -n "${now:-}" ] || read -r now _ </proc/uptime
	printf '1\tup:%s\tscript\t%s\t-\t0\t-\t-\t%s\t-\t-\t%s\n' \
		"${now%%.*}" "$1" "${init:--}" "$2" >>"$run/hook.log"
} 2>/dev/null

end() {
	remember
	result=0
	[ "$1" -eq 0 ] || result=1
	exit
}

fail() {
	say "not done: $1"
	record failed "not done: $1"
	is_strict
	end $((! $?))
}

# A shell that cannot fork, or has no descriptor left, exits with a code of its own.
leave() {
	if [ -z "$result" ]; then
		say 'not done: the shell could not go on, as at a limit of processes or open files'
		is_strict
		result=$((! $?))
	fi
	exit "$result"
}

init=${CRTOOLS_INIT_PID:-} said='' result=''
trap leave EXIT
[ ! -r /dev/null ] || exec </dev/null
if is_number "$init"; then
	is_done "$init" && result=0 && exit
	ask_service "$init"
	case $? in
	0)
		if [ "$code" -le 1 ]; then
			say "$said"
			end "$code"
		fi
		;;
	2)
		if place_image "$init"; then
			set -- "the service did not reply in $wait_s s: the image that it proved last is used"
			say "$1"
			record 'last image' "$1"
			end 0
		fi
		;;
	esac
fi

[ -f "$program" ] && [ -x "$program" ] ||
	fail "${said:+the service: $said; }$program is missing: install irmapdb again, or remove this hook from CRIU's configuration"
# Python itself starts in less time than $program, which reads all of the environment's .pth files.
set -- "$program"
[ ! -x "$python" ] || [ ! -f "${packages%%:*}/irmapdb/criu/hook.py" ] || set -- "$python" -ISc '
import sys
sys.path += sys.argv[1].split(":")
from irmapdb.criu.hook import execute
execute()' "$packages"
# The shell prints a message of its own if a program was killed.
{ said=$(IRMAPDB_HOOK_SCRIPT=$PPID "$@" 2>&1); } 2>/dev/null
code=$?
case $code in
0 | 99)
	[ -z "$said" ] || printf '%s\n' "$said" >&2
	end "$code"
	;;
esac
last=${said##*
}
fail "$program ended with exit code $code${last:+: $last}"
