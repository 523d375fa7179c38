"""Models that are on the host already: linking 1,000 of them from RunPod's cache, and starting when all are in place.

    python -m bench.links [--files 1000]

`python utils.py` is run as the image runs it, on a cache laid out as huggingface_hub does, with small safetensors files
in it and a Hub that nobody answers for: nothing can be downloaded. Baselines: ``os.symlink`` and nothing else, and a
Python that reads the settings and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROUNDS = 5
FEW = 8
COMMIT = "c0ffee" + "0" * 34
SETTINGS_ONLY = "from settee.base.settings import load; load()"


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def fill_cache(cache: Path, files: int) -> None:
    """One repository of the Hub with that many files: refs, snapshots of links, blobs."""
    repo = cache / "models--bench--many"
    snapshot, blobs = repo / "snapshots" / COMMIT, repo / "blobs"
    for folder in (snapshot, blobs, repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs/main").write_text(COMMIT)
    header = json.dumps({"weight": {"dtype": "F16", "shape": [512], "data_offsets": [0, 1024]}}).encode()
    for number in range(files):
        content = struct.pack("<Q", len(header)) + header + number.to_bytes(1024, "little")
        blob = blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / f"{number:04}.safetensors").symlink_to(Path("../../blobs") / blob.name)


def utils(folder: Path, files: int) -> None:
    """Run the model manager for that many files."""
    names = [f"{number:04}.safetensors" for number in range(files)]
    entries = [{"source": f"bench/many:{name}", "target": "loras"} for name in names]
    (folder / "models.json").write_text(json.dumps(entries))
    environment = {
        "PATH": os.environ["PATH"],
        "MODELS_FILE": str(folder / "models.json"),
        "MODELS_DIR": str(folder / "models"),
        "HOST_CACHE_DIR": str(folder / "hub"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    run = subprocess.run([sys.executable, "utils.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def links(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        os.symlink(path, target / path.name)


def measure(folder: Path, files: int) -> dict[str, float]:
    found = {}
    found["os.symlink"] = seconds(lambda: links(folder / "hub/models--bench--many/snapshots" / COMMIT, folder / "bare"))
    found["linked"] = seconds(lambda: utils(folder, files))
    placed = [path for path in (folder / "models/loras").iterdir() if path.is_symlink() and path.is_file()]
    assert len(placed) == files, len(placed)
    found["warm, all"] = seconds(lambda: utils(folder, files))
    found["warm, few"] = seconds(lambda: utils(folder, FEW))
    found["settings"] = seconds(
        lambda: subprocess.run(
            [sys.executable, "-c", SETTINGS_ONLY], cwd=ROOT, env={"PATH": os.environ["PATH"]}, check=True
        )
    )
    for name in ("bare", "models"):
        shutil.rmtree(folder / name)
    return found


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--files", type=int, default=1000)
    files = options.parse_args().files
    folder = Path(tempfile.mkdtemp(prefix="settee-bench-"))
    try:
        fill_cache(folder / "hub", files)
        rounds = [measure(folder, files) for _ in range(ROUNDS)]
    finally:
        shutil.rmtree(folder)

    def median(value: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(value(one) for one in rounds)

    def per_file(name: str) -> float:
        return median(lambda one: one[name] / files * 1000)

    print(f"{files} files from the host cache, medians of {ROUNDS}")
    print(f"  utils.py, its start included    {per_file('linked'):7.3f} ms a file")
    print(f"  os.symlink and nothing else     {per_file('os.symlink'):7.3f} ms a file")
    print(f"  utils.py / os.symlink           {median(lambda one: one['linked'] / one['os.symlink']):7.1f}")
    print("everything in place")
    print(f"  utils.py, {FEW} models             {median(lambda one: one['warm, few']):7.3f} s")
    print(f"  utils.py, {files:4} models          {median(lambda one: one['warm, all']):7.3f} s")
    print(f"  the settings and nothing else   {median(lambda one: one['settings']):7.3f} s")
    print(f"  utils.py, {FEW} models / settings  {median(lambda one: one['warm, few'] / one['settings']):7.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
