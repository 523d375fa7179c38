"""Wiping a RAM disk: settee's way against the floor and against the usual way, in one run.

    python bench/wipe.py [--mib 1024] [--files 8] [--folder /dev/shm]

The floor is ``pwrite`` of 1 MiB zero buffers over the same pages, and nothing else. Whoever also removes the files
pays the kernel for taking the pages back: the second floor, the least that any wipe can take. The usual way opens each
file with ``open(name, "wb")``, writes as many zeroes, and removes it; it leaves the old pages as they were
(tests/unit/test_wipe.py reads them back). Also printed: three empty folders, which is what a job pays that left
nothing, and what the wipe adds to the process's memory.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from settee.staging.wipe import wipe_tree

MIB = 1024 * 1024
ZEROES = bytes(MIB)
ROUNDS = 5


def fill(folder: Path, mib: int, files: int) -> None:
    """Spread ``mib`` MiB of something that is not zero over ``files`` files, some of them in a subfolder."""
    noise = os.urandom(MIB)
    (folder / "sub").mkdir(exist_ok=True)
    for number in range(files):
        with open(folder / ("sub" if number % 2 else "") / f"{number}.bin", "wb") as file:
            for _ in range(mib // files):
                file.write(noise)


def floor(folder: Path) -> None:
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        fd = os.open(path, os.O_WRONLY)
        for position in range(0, path.stat().st_size, MIB):
            os.pwrite(fd, ZEROES, position)
        os.close(fd)


def floor_removed(folder: Path) -> None:
    floor(folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.unlink()


def usual(folder: Path) -> None:
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        left = path.stat().st_size
        with open(path, "wb") as file:
            while left > 0:
                left -= file.write(ZEROES[: min(left, MIB)])
            file.flush()
            os.fsync(file.fileno())
        path.unlink()


def settee(folder: Path) -> None:
    left = wipe_tree(folder)
    assert not left, left


def seconds(way: Callable[[Path], None], folder: Path, mib: int, files: int) -> float:
    fill(folder, mib, files)
    gc.collect()
    start = time.perf_counter()
    way(folder)
    taken = time.perf_counter() - start
    wipe_tree(folder)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="how much to wipe (default 1024)")
    parser.add_argument("--files", type=int, default=8, help="in how many files (default 8)")
    parser.add_argument("--folder", default="/dev/shm", help="where (default /dev/shm)")
    arguments = parser.parse_args()
    mib = arguments.mib // arguments.files * arguments.files
    folder = Path(tempfile.mkdtemp(prefix="settee-bench-", dir=arguments.folder))
    try:
        ways: dict[str, Callable[[Path], None]] = {
            "pwrite in place, files kept": floor,
            "pwrite in place, then unlink": floor_removed,
            "wipe_tree: in place, synced, truncated, unlinked": settee,
            'open("wb"), zeroes, unlink (old pages survive)': usual,
        }
        # In turns, so that a busy machine is unfair to all of them alike.
        taken: dict[str, list[float]] = {text: [] for text in ways}
        grown = 0
        for _ in range(ROUNDS):
            for text, way in ways.items():
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                taken[text].append(seconds(way, folder, mib, arguments.files))
                if way is settee:
                    grown = max(grown, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        print(f"wiping {mib} MiB in {arguments.files} files, best of {ROUNDS}, against both floors:")
        best = [min(times) for times in taken.values()]
        for text, time_s in zip(ways, best, strict=True):
            print(f"  {time_s:7.3f} s  {time_s / best[0]:5.2f} x  {time_s / best[1]:5.2f} x  {text}")
        print(f"  {grown / 1024:7.1f} MiB added to the process's peak memory by wipe_tree")
        empty = [folder / name for name in ("input", "output", "temp")]
        for path in empty:
            path.mkdir()
        times = []
        for _ in range(1000):
            start = time.perf_counter()
            for path in empty:
                wipe_tree(path)
            times.append(time.perf_counter() - start)
        print(f"  {statistics.median(times) * 1e6:7.1f} µs for three empty folders")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
