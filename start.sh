#!/usr/bin/env bash
# The container's entry point: SSH when asked for, the RAM
# disk, and then one program that gets every signal.
#
#   start.sh                     what MODE says: serverless
#                                (default), interactive or
#                                serve-api
#   start.sh --test_input '{…}'  the same, with arguments for
#                                the worker
#   start.sh COMMAND ARGUMENTS…  SSH and the RAM disk, then
#                                that command
#   start.sh --help, --version   this, and the program's
#
# Read here: MODE, PUBLIC_KEY or PUBLIC_KEY_FILE, COMFY_DIR,
# WORKSPACE_DIR, SETTEE_PYTHON. Everything else, secrets and
# their *_FILE included, is read by the worker itself
# (docs/settings.md), and never printed.
set -Eeuo pipefail

# usage: log MESSAGE…
log() {
	printf 'start.sh: %s\n' "$*" >&2
}

# usage: die MESSAGE…   (what to set, in one line)
die() {
	log "$@"
	exit 1
}

# usage: secret_from_file NAME
# Fills the variable NAME from the file that NAME_FILE names, as container platforms mount secrets.
secret_from_file() {
	local name="$1" file_name="$1_FILE"
	local file="${!file_name:-}"
	[[ -n "$file" ]] || return 0
	[[ -z "${!name:-}" ]] || die "$name and $file_name are both set: set one of them"
	[[ -r "$file" && -f "$file" ]] || die "$file_name names a file that cannot be read"
	printf -v "$name" '%s' "$(<"$file")"
}

# usage: setup_folders
# Sets COMFY_DIR, WORKSPACE_DIR, SETTEE_DIR and SETTEE_PYTHON where they are not; settee/base/settings.py has the same
# defaults, and what is set here wins there too.
setup_folders() {
	local ram_disk="${TMPDIR:-/tmp}"
	[[ -d /dev/shm && -w /dev/shm ]] && ram_disk=/dev/shm
	export COMFY_DIR="${COMFY_DIR:-/comfyui}"
	export WORKSPACE_DIR="${WORKSPACE_DIR:-$ram_disk/settee}"
	[[ "$WORKSPACE_DIR" == /?* ]] || die "WORKSPACE_DIR must be an absolute path of a folder of its own"
	SETTEE_DIR="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
	if [[ -z "${SETTEE_PYTHON:-}" ]]; then
		SETTEE_PYTHON="$SETTEE_DIR/.venv/bin/python"
		[[ -x "$SETTEE_PYTHON" ]] || SETTEE_PYTHON=python3
	fi
	command -v "$SETTEE_PYTHON" >/dev/null || die "there is no $SETTEE_PYTHON: set SETTEE_PYTHON to the worker's Python"
}

# usage: make_ram_disk
# Makes input, output and temp below WORKSPACE_DIR, and links ComfyUI's own folders there: the worker names them on
# ComfyUI's command line, but some custom nodes write to ComfyUI's folder whatever it was told.
make_ram_disk() {
	local folder free_mib
	for folder in input output temp; do
		(umask 077 && mkdir -p -- "$WORKSPACE_DIR/$folder") ||
			die "WORKSPACE_DIR cannot be used: set it to a folder that can be written, on a RAM disk"
	done
	[[ "$(stat -f -c %T -- "$WORKSPACE_DIR")" == tmpfs ]] ||
		log "warning: WORKSPACE_DIR is on a disk, and so will be what jobs bring and make"
	free_mib="$(df -Pm -- "$WORKSPACE_DIR" | awk 'NR == 2 { print $4 }')"
	if ((free_mib < 1024)); then
		log "warning: WORKSPACE_DIR has ${free_mib} MiB free; more: docker run --shm-size=8g"
	fi
	if [[ -d "$COMFY_DIR" ]]; then
		for folder in input output temp; do
			link_folder "$COMFY_DIR/$folder" "$WORKSPACE_DIR/$folder"
		done
	fi
}

# usage: link_folder LINK TARGET
# Makes LINK point to TARGET. An empty folder there is replaced; anything else is moved aside, never deleted.
link_folder() {
	local link="$1" target="$2"
	[[ "$link" -ef "$target" ]] && return 0
	if [[ ! -w "$(dirname -- "$link")" ]]; then
		log "warning: $link cannot be linked to the RAM disk: its folder cannot be written"
		return 0
	fi
	if [[ -d "$link" && ! -L "$link" ]] && rmdir -- "$link" 2>/dev/null; then
		:
	elif [[ -e "$link" || -L "$link" ]]; then
		move_aside "$link" || return 0
	fi
	ln -s -T -- "$target" "$link" || log "warning: $link cannot be linked to the RAM disk"
}

# usage: move_aside PATH   (to PATH.before-settee, or with a number when that is taken)
move_aside() {
	local aside="$1.before-settee" number=1
	while [[ -e "$aside" || -L "$aside" ]]; do
		number=$((number + 1))
		aside="$1.before-settee-$number"
	done
	if mv -T -- "$1" "$aside"; then
		log "moved $1 to $aside"
	else
		log "warning: $1 stays where it is (is it mounted?): custom nodes that write there leave files behind"
		return 1
	fi
}

# usage: start_ssh
# With PUBLIC_KEY (one or more lines), starts sshd for those keys; without, nothing listens. Whatever goes wrong here
# costs the jobs nothing.
start_ssh() {
	local sshd
	[[ -n "${PUBLIC_KEY:-}" ]] || return 0
	if ! sshd="$(command -v sshd)"; then # an absolute path, which sshd insists on
		log "warning: PUBLIC_KEY is set, but there is no sshd in this image: no SSH"
	elif ! ssh-keygen -l -f /dev/stdin >/dev/null 2>&1 <<<"$PUBLIC_KEY"; then
		log "warning: PUBLIC_KEY is not an SSH public key (a line like 'ssh-ed25519 AAAA… you@host'): no SSH"
	elif authorize_keys "${HOME:-/root}/.ssh" && make_host_keys "${SSH_HOST_KEYS:-/etc/ssh}" && mkdir -p /run/sshd &&
		"$sshd" -o PubkeyAuthentication=yes -o AuthorizedKeysFile=.ssh/authorized_keys -o X11Forwarding=no \
			-o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o PermitRootLogin=prohibit-password; then
		log "SSH listens, for PUBLIC_KEY only"
	else
		log "warning: sshd did not start: no SSH"
	fi
}

# usage: authorize_keys FOLDER
# Adds the lines of PUBLIC_KEY that are not there yet to FOLDER/authorized_keys.
authorize_keys() {
	local file="$1/authorized_keys" line
	(umask 077 && mkdir -p -- "$1" && touch -- "$file") || return 1
	if [[ -n "$(tail -c 1 -- "$file")" ]]; then # a last line without its end would swallow the first key
		printf '\n' >>"$file" || return 1
	fi
	while IFS= read -r line; do
		line="${line%$'\r'}"
		if [[ -n "$line" ]] && ! grep -qxF -- "$line" "$file"; then
			printf '%s\n' "$line" >>"$file" || return 1
		fi
	done <<<"$PUBLIC_KEY"
}

# usage: make_host_keys FOLDER   (those that are missing: a container keeps its own over a restart)
make_host_keys() {
	local type
	for type in ed25519 rsa; do
		if [[ ! -s "$1/ssh_host_${type}_key" ]]; then
			ssh-keygen -q -t "$type" -N '' -f "$1/ssh_host_${type}_key" </dev/null || return 1
		fi
	done
}

# usage: run_mode [WORKER ARGUMENTS…]   (never returns)
run_mode() {
	cd -- "$SETTEE_DIR" # for python -m; ComfyUI runs in its own folder
	case "$MODE" in
	serverless)
		exec "$SETTEE_PYTHON" -u rp_handler.py "$@"
		;;
	serve-api)
		export SERVE_API_LOCALLY=true
		exec "$SETTEE_PYTHON" -u rp_handler.py "$@"
		;;
	interactive)
		exec "$SETTEE_PYTHON" -u -m settee interactive "$@"
		;;
	esac
}

# usage: tell --help|--version   (never returns, starts nothing)
tell() {
	if [[ "$1" != --version ]]; then
		sed -n '2,/^[^#]/s/^# \{0,1\}//p' -- "${BASH_SOURCE[0]}"
		printf '\n'
	fi
	run_mode "$1"
}

# usage: check_mode
check_mode() {
	MODE="${MODE:-serverless}"
	case "$MODE" in
	serverless | serve-api | interactive) ;;
	*) die "MODE=$MODE is none of serverless, interactive, serve-api" ;;
	esac
}

# usage: is_sourced
is_sourced() {
	[[ "${BASH_SOURCE[0]}" != "$0" ]]
}

_main() {
	trap 'exit 143' TERM INT # the first process of a container gets no signal that it does not ask for
	check_mode
	setup_folders
	case "${1:-}" in
	-h | --help | --version) tell "$1" ;;
	esac
	secret_from_file PUBLIC_KEY
	start_ssh
	make_ram_disk
	if (($# > 0)) && [[ "$1" != -* ]]; then
		exec "$@"
	fi
	run_mode "$@"
}

if ! is_sourced; then
	_main "$@"
fi
