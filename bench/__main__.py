"""`make bench`: every figure of bench/ (or those that are named), one after another, each in a process of its own.

With COMFY_URL set (and COMFY_INPUT_DIR, COMFY_OUTPUT_DIR) the engine is measured on that ComfyUI too; with COMFY_DIR
its garbage collector's stall.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from settee import __version__

BENCHES = (
    "agent_answers",
    "cold_import",
    "cold_start",
    "engine",
    "delivery_memory",
    "links",
    "model_folder",
    "readahead",
    "runpod_loop",
    "runpod_memory",
    "transfer",
    "wipe",
)


def _parsed() -> argparse.Namespace:
    every = (*BENCHES, "gc_stall")
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure, as ratios against named baselines.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="benches:\n" + "\n".join(f"  {name:16} {_title(name)}" for name in every),
    )
    parser.add_argument("--version", action="version", version=f"settee {__version__}")
    parser.add_argument("benches", metavar="NAME", nargs="*", help="benches to run (default: all)")
    arguments = parser.parse_args()
    if unknown := set(arguments.benches) - set(every):
        parser.error(f"there is no bench {', '.join(sorted(unknown))}: --help lists them")
    return arguments


def _title(name: str) -> str:
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    text = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
    return textwrap.shorten(text.partition(": ")[0], 40, placeholder=" …")


def main() -> int:
    chosen = _parsed().benches
    failed = []
    inside = {name: value for name, value in os.environ.items() if not name.startswith("COMFY_")}
    runs = [(name, inside) for name in BENCHES]
    if "COMFY_URL" in os.environ:
        runs.insert(2, ("engine", dict(os.environ)))
    runs.append(("gc_stall", {**os.environ, "COMFY_PORT": "0"}))
    for name, environment in runs:
        if chosen and name not in chosen:
            continue
        print(f"\n== bench/{name}.py", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], env=environment).returncode != 0:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
