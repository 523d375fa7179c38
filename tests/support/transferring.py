"""One call for a test's download, with limits small enough that a few MiB have many ranges."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from settee.models.folder.checks import Hashes
from settee.models.transfer.address import Address
from settee.models.transfer.download import download
from settee.models.transfer.scheduler import Scheduler
from settee.models.transfer.stream import Limits
from settee.net.retry import Backoff

KIB = 1024
#: Many ranges, short waits.
SMALL = Limits(
    range_bytes=256 * KIB,
    connect_s=30,
    stall_s=30,
    progress_bytes=64 * KIB,
    backoff=Backoff(0.01, 0.05, jitter=1.0),
    flush_s=0.02,
    tick_s=0.02,
)
#: A connection that says nothing is left soon: for tests of just that, since a busy machine is silent too.
HASTY = replace(SMALL, stall_s=0.4)


def noise(size: int, seed: bytes = b"model") -> bytes:
    """Bytes without a pattern, the same every time."""
    return hashlib.shake_128(seed).digest(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetch(
    url: str,
    target: Path,
    *,
    known: dict[str, Any] | None = None,
    stop: threading.Event | None = None,
    size: int | None = None,
    sha256: str | None = None,
    **options: Any,
) -> Hashes:
    """``known`` are further fields of the address, which is held to ``size`` and ``sha256``."""
    address = Address(url, "the model", **(known or {})).held_to(size, sha256)
    arguments: dict[str, Any] = {
        "lane": Scheduler(8).lane(stop),
        "deadline": time.monotonic() + 60,
        "on_progress": lambda done, total: None,
        "limits": SMALL,
    }
    return download(address, target, **{**arguments, **options})


def left(folder: Path) -> list[str]:
    """Names in the folder."""
    return sorted(path.name for path in folder.iterdir())
