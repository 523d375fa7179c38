"""A safetensors load from a network volume, with read-ahead and without, page cache dropped before each.

    python -m bench.readahead [--mib 512] [--latency-ms 2] [--mb-per-s 1000] [--readers 4]

The volume is bench/slow_volume.py: a real FUSE mount (what a network volume is), which answers each request after
``latency-ms`` and all together at ``mb-per-s``; it needs root. The load is what ComfyUI does: a process of its own maps
the file and copies tensor after tensor out of the mapping. With SETTEE_BENCH_TORCH_PYTHON set to a Python that has
torch and safetensors, it is their own load. Baseline: the same load with nothing read ahead.
"""

from __future__ import annotations

import argparse
import contextlib
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

from bench.slow_volume import SlowVolume, Unavailable, own_mounts
from settee.models.readahead import ReadAhead
from tests.support.page_cache import resident

MIB = 1024 * 1024
ROUNDS = 5
#: MiB of each tensor, over and over: large matrices with small ones between, as in a checkpoint.
TENSORS = (0.01, 25, 0.01, 6.25, 6.25, 0.01, 12.5, 1.5, 0.01, 50, 0.01, 3)

MAPPED = """
import json, mmap, struct, sys, time
print("ready", flush=True)
input()
began = time.perf_counter()
with open(sys.argv[1], "rb") as file:
    whole = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
length = struct.unpack_from("<Q", whole)[0]
header = json.loads(whole[8 : 8 + length])
for name, tensor in header.items():
    start, end = tensor["data_offsets"]
    copied = whole[8 + length + start : 8 + length + end]
print(time.perf_counter() - began)
"""
TORCH = """
import sys, time
import torch
from safetensors import safe_open
print("ready", flush=True)
input()
began = time.perf_counter()
with safe_open(sys.argv[1], framework="pt", device="cpu") as file:
    tensors = {name: file.get_tensor(name) for name in file.keys()}
for tensor in tensors.values():
    tensor.clone()
print(time.perf_counter() - began)
"""
#: Stands for ComfyUI's start: a process that imports.
START = "import aiohttp, boto3, cryptography.fernet, PIL.Image, pydantic_settings, requests"


def write_checkpoint(path: Path, size: int) -> None:
    header: dict[str, object] = {}
    end = 0
    while end < size:
        length = min(size - end, int(TENSORS[len(header) % len(TENSORS)] * MIB) // 2 * 2)
        header[f"t{len(header)}"] = {"dtype": "F16", "shape": [length // 2], "data_offsets": [end, end + length]}
        end += length
    text = json.dumps(header).encode()
    noise = os.urandom(MIB)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(0, end, MIB):
            file.write(noise)
        file.truncate(8 + len(text) + end)


def drop(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def cached(path: Path) -> float:
    """How much of it is in the page cache, from 0 to 1: some machines take pages back at once."""
    with open(path, "rb") as file:
        pages = resident(file.fileno(), 0, path.stat().st_size) or b"\0"
    return 1 - pages.count(0) / len(pages)


def load(path: Path, before: Callable[[], object] = lambda: None) -> float:
    """Seconds of a load in a process of its own, without the process's start; ``before`` is called just before it."""
    torch = os.environ.get("SETTEE_BENCH_TORCH_PYTHON")
    command = [torch, "-c", TORCH] if torch else [sys.executable, "-c", MAPPED]
    with subprocess.Popen([*command, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        before()
        child.stdin.write("\n")
        child.stdin.flush()
        return float(child.stdout.readline())


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def start() -> float:
    return seconds(lambda: subprocess.run([sys.executable, "-c", START], check=True))


def drain(ahead: ReadAhead) -> None:
    """Wait until nothing is left to read."""
    while ahead._files:
        time.sleep(0.002)


def measure(path: Path, readers: int) -> dict[str, float]:
    """One round: seconds of each way."""
    found = {}
    drop(path)
    found["load alone"] = load(path)
    found["load, cached"] = load(path)
    drop(path)
    with contextlib.closing(ReadAhead(readers=readers)) as ahead:
        cpu = time.process_time()
        ahead.add(path)
        found["read-ahead"] = seconds(lambda: drain(ahead))
        found["read-ahead, CPU"] = time.process_time() - cpu
        found["of it cached"] = cached(path)
        found["load after"] = load(path)
        drop(path)
        found["both at once"] = load(path, lambda: ahead.add(path))
        drain(ahead)
        found["start alone"] = start()
        drop(path)
        ahead.add(path)
        found["start during read-ahead"] = start()
    return found


def report(path: Path, size: int, readers: int) -> None:
    rounds = [measure(path, readers) for _ in range(ROUNDS)]
    found = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    print(f"  in the page cache after read-ahead: {found.pop('of it cached'):.0%}")
    for name, took in found.items():
        speed = f"  {size / 1e6 / took:6.0f} MB/s" if "start" not in name and "CPU" not in name else ""
        print(f"  {name:24} {took:7.3f} s{speed}")

    def ratio(name: str, above: Callable[[dict[str, float]], float], below: str) -> None:
        print(f"  {name:58} {statistics.median(above(one) / one[below] for one in rounds):6.3f}")

    ratio("load after read-ahead / load without", lambda one: one["load after"], "load alone")
    ratio("read-ahead and then load / load without", lambda one: one["read-ahead"] + one["load after"], "load alone")
    ratio("load while it is read ahead / load without", lambda one: one["both at once"], "load alone")
    ratio(
        "a start (imports) during read-ahead / a start alone", lambda one: one["start during read-ahead"], "start alone"
    )


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--mib", type=int, default=512)
    options.add_argument("--latency-ms", type=float, default=2)
    options.add_argument("--mb-per-s", type=float, default=1000)
    options.add_argument("--readers", type=int, nargs="+", default=[4])
    wanted = options.parse_args()
    folder = Path(
        tempfile.mkdtemp(prefix="settee-bench-", dir="/dev/shm")
    )  # the volume's far end, not what is measured
    try:
        own_mounts()
        checkpoint = folder / "checkpoint.safetensors"
        write_checkpoint(checkpoint, wanted.mib * MIB)
        speed = {"latency_s": wanted.latency_ms / 1000, "bytes_per_s": wanted.mb_per_s * 1e6}
        with SlowVolume({checkpoint.name: checkpoint}, **speed) as volume:
            torch = "torch and safetensors" if "SETTEE_BENCH_TORCH_PYTHON" in os.environ else "a mapping, copied"
            print(
                f"{wanted.mib} MiB over FUSE, {wanted.latency_ms:g} ms a request, {wanted.mb_per_s:g} MB/s in all; "
                f"load: {torch}; medians of {ROUNDS}"
            )
            for readers in wanted.readers:
                print(f" {readers} readers")
                report(volume / checkpoint.name, checkpoint.stat().st_size, readers)
    except Unavailable as reason:
        print(f"not measured: {reason}")
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
