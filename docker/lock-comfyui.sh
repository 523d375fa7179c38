#!/usr/bin/env bash
# usage: lock-comfyui.sh TAG [DATE]
#        lock-comfyui.sh VARIANT 'torch==… torchvision==… torchaudio==…' [INDEX]
# Pins, with hashes, all that the image installs for ComfyUI; `make demo` brings
# the uv that does it.
#   lock-comfyui.sh v0.33.0 2026-12-01   docker/comfyui-v0.33.0.lock:
#     the packages that this release of ComfyUI asks for, PyTorch's libraries
#     aside, as they were on DATE (default: today; some days after the release
#     is what it was tried with).
#   lock-comfyui.sh cu126 'torch==2.14.1+cu126 …' \
#     https://download.pytorch.org/whl/cu126   docker/torch-cu126.lock:
#     PyTorch and its libraries for one CUDA, from PyPI, which has one CUDA of
#     each PyTorch, or from INDEX as well (which the build takes as TORCH_INDEX).
set -Eeuo pipefail
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
PATH="$here/../.venv/bin:$PATH"
# What is in a torch lock, and in no other.
pytorch='^(torch|torchvision|torchaudio|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)=='

# usage: compile OPTIONS…   (what is resolved)
compile() {
	uv pip compile --quiet --python python3 --no-header --no-annotate "$@"
}

# usage: hashes PYTORCH OPTIONS…   (pins come in; those of PyTorch and its libraries go out where PYTORCH is 1, all others
# where it is 0. With the hashes of all files: on DATE some of a release's wheels may not have been uploaded yet.)
hashes() {
	compile --no-deps --generate-hashes "${@:2}" - |
		awk -v pytorch="$pytorch" -v wanted="$1" '/^[a-z]/ { keep = ($0 ~ pytorch) == wanted } keep'
}

# usage: lock_comfyui TAG DATE
lock_comfyui() {
	local source lock="$here/comfyui-$1.lock" python=(--universal --python-version 3.10)
	source="$(mktemp -d)"
	git -c advice.detachedHead=false clone --quiet --depth 1 --branch "$1" \
		https://github.com/comfyanonymous/ComfyUI.git "$source"
	printf '# As of %s. Made by docker/lock-comfyui.sh.\n' "$2" >"$lock"
	compile "${python[@]}" --exclude-newer "$2" "$source/requirements.txt" | hashes 0 "${python[@]}" >>"$lock"
	rm -rf -- "${source:?}"
}

# usage: lock_torch VARIANT SPECS INDEX
lock_torch() {
	local lock="$here/torch-$1.lock"
	printf '# Made by docker/lock-comfyui.sh.\n' >"$lock"
	local options=(--python-version 3.12 --python-platform x86_64-manylinux_2_28 --index-strategy unsafe-best-match)
	options+=(${3:+--index "$3"})
	compile "${options[@]}" - <<<"${2// /$'\n'}" | hashes 1 "${options[@]}" >>"$lock"
}

case "${1-}:$#" in
cu[0-9]*:[23]) lock_torch "$1" "$2" "${3-}" ;;
v*:[12]) lock_comfyui "$1" "${2-$(date +%F)}" ;;
*)
	[[ ${1-} == -h || ${1-} == --help ]] || exec >&2
	sed -n '2,/^set /s/^# //p' "$0"
	[[ ${1-} == -h || ${1-} == --help ]] || exit 2
	;;
esac
