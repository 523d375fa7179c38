"""From a fresh Python to a handler that can take a job, against `import runpod` alone.

Both are whole processes, alternating, each timed by itself from before its first import.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

TIMED = "import time; begun = time.perf_counter()\n{code}\nprint(time.perf_counter() - begun)"

STOCK = "import runpod"
OURS = """
import rp_handler
from settee.doors.runpod import loop
from settee.doors.runpod.worker import Worker
from settee.base.settings import load
door = Worker(load()).door
"""


def seconds(code: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(code=code)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    stock, ours = [], []
    for _ in range(7):
        stock.append(seconds(STOCK))
        ours.append(seconds(OURS))
    theirs, mine = statistics.median(stock), statistics.median(ours)
    print(f"import runpod                                    {theirs:6.3f} s   1.00")
    print(f"rp_handler, engine and job loop, ready for a job {mine:6.3f} s   {mine / theirs:.2f}   (target: 0.5 s)")


if __name__ == "__main__":
    main()
