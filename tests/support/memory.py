"""What a process takes of memory, as Linux counts it (/proc)."""

from __future__ import annotations

from pathlib import Path


def resident(name: str, pid: int | str = "self") -> int:
    """VmRSS or its peak, VmHWM, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def reset_peak(pid: int | str = "self") -> int:
    """Let the peak begin anew; returns the resident memory now, in bytes."""
    before = resident("VmRSS", pid)
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return before
