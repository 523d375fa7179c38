"""`make bench`: every figure of bench/, one after another, each in a process of its own.

With COMFY_URL set (and COMFY_INPUT_DIR, COMFY_OUTPUT_DIR) the engine is measured on that ComfyUI too; with COMFY_DIR
its garbage collector's stall.
"""

from __future__ import annotations

import os
import subprocess
import sys

BENCHES = (
    "agent_answers",
    "cold_import",
    "cold_start",
    "engine",
    "delivery_memory",
    "links",
    "models_shelf",
    "readahead",
    "runpod_loop",
    "runpod_memory",
    "transfer",
    "wipe",
)


def main() -> int:
    failed = []
    inside = {name: value for name, value in os.environ.items() if not name.startswith("COMFY_")}
    runs = [(name, inside) for name in BENCHES]
    if "COMFY_URL" in os.environ:
        runs.insert(2, ("engine", dict(os.environ)))
    runs.append(("gc_stall", {**os.environ, "COMFY_PORT": "0"}))
    for name, environment in runs:
        print(f"\n== bench/{name}.py", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], env=environment).returncode != 0:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
