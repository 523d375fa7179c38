#!/usr/bin/env bash
# usage: lock-comfyui.sh COMFYUI_FOLDER TAG DATE
# Pins, with hashes, what the requirements.txt of ComfyUI's TAG wants, as of DATE (YYYY-MM-DD, some days after the
# release: what it was tried with), into docker/comfyui-TAG.lock. PyTorch is not in it, nor what comes with it and with
# nothing else (PyTorch 2.6 insists on another sympy than 2.8): they come from an index of their own, by the Dockerfile.
set -Eeuo pipefail
(($# == 3)) || {
	sed -n 's/^# //p' "$0" >&2
	exit 2
}
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
whole="$(mktemp)"
trap 'rm -f -- "$whole"' EXIT
uv pip compile --quiet --generate-hashes --universal --python-version 3.10 --exclude-newer "$3" \
	--no-emit-index-url --no-header --no-annotate "$1/requirements.txt" -o "$whole"
# A package is a line that begins with a letter, and the lines indented below it.
awk '/^[A-Za-z]/ { keep = !/^(torch|torchvision|torchaudio|triton|nvidia-[a-z0-9-]+|sympy|mpmath|networkx|setuptools)==/ } keep' "$whole" \
	>"$here/comfyui-$2.lock"
