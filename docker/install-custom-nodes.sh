#!/usr/bin/env bash
# usage: install-custom-nodes COMFY_DIR LOCK 'https://github.com/OWNER/REPO@COMMIT-OR-TAG …'
# Puts custom nodes into an image, each at one commit or tag, and their requirements into ComfyUI's Python without
# changing what is there. A branch is refused: the same image would be built with other code tomorrow. Requirements
# name no versions as a rule: they are what they were on the day of LOCK (ComfyUI's) or of the node's commit, whichever
# is later, so the same image is built on any day.
set -Eeuo pipefail

# usage: die MESSAGE…
die() {
	printf 'install-custom-nodes: %s\n' "$*" >&2
	exit 1
}

# usage: check_spec SPEC   (sets URL, REF and NAME)
check_spec() {
	[[ "$1" =~ ^(https://[A-Za-z0-9./_-]+)@([A-Za-z0-9._/-]+)$ ]] ||
		die "'$1' is not pinned: write https://github.com/OWNER/REPO@COMMIT-OR-TAG"
	URL="${BASH_REMATCH[1]}"
	REF="${BASH_REMATCH[2]}"
	NAME="$(basename -- "$URL" .git)"
	[[ "$NAME" != .* ]] || die "'$1' has no name"
}

# usage: fetch FOLDER   (REF of URL; a commit by its whole id, or a tag; sets COMMITTED, its day)
fetch() {
	local ref
	if [[ "$REF" =~ ^[0-9a-f]{40}$ ]]; then
		ref="$REF"
	elif [[ "$REF" =~ ^[0-9a-f]{7,39}$ ]]; then
		die "$URL@$REF: give the whole commit id, 40 digits"
	else
		ref="refs/tags/$REF"
	fi
	git init --quiet "$1"
	git -C "$1" fetch --quiet --depth 1 "$URL" "$ref" || die "$URL has no tag or commit $REF (a branch is no pin)"
	git -C "$1" checkout --quiet --detach FETCH_HEAD
	git -C "$1" submodule --quiet update --init --recursive --depth 1
	COMMITTED="$(git -C "$1" show --no-patch --format=%cs)"
	rm -rf -- "${1:?}/.git"
}

# usage: install_requirements FOLDER PYTHON CONSTRAINTS DATE
install_requirements() {
	[[ -f "$1/requirements.txt" ]] || return 0
	uv pip install --python "$2" --constraint "$3" --exclude-newer "$4" -r "$1/requirements.txt" ||
		die "$NAME wants other versions than ComfyUI has, or releases after $4 (above): pin another release of it"
}

_main() {
	(($# == 3)) || die "usage: install-custom-nodes COMFY_DIR LOCK 'SPEC…'"
	local comfy_dir="$1" python="$1/.venv/bin/python" constraints locked spec
	local -a specs
	read -r -a specs <<<"${3//$'\n'/ }"
	locked="$(sed -n '1s/^# As of \([0-9-]*\).*/\1/p' "$2")"
	constraints="$(mktemp)"
	uv pip freeze --python "$python" >"$constraints"
	for spec in "${specs[@]}"; do
		check_spec "$spec"
		[[ ! -e "$comfy_dir/custom_nodes/$NAME" ]] || die "$NAME is there already"
		fetch "$comfy_dir/custom_nodes/$NAME"
		install_requirements "$comfy_dir/custom_nodes/$NAME" "$python" "$constraints" \
			"$([[ "$COMMITTED" > "$locked" ]] && echo "$COMMITTED" || echo "$locked")"
	done
	rm -f -- "$constraints"
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
	_main "$@"
fi
