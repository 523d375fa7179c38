"""The way out where no plain HTTP serves a file: its source's own library fetches it, beside the target.

The Hub's Xet storage is asked by plain HTTP first, which its bridge serves; hf_hub_download is for what that refuses.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from settee.base.threads import Call, Stopped
from settee.errors import SetteeError
from settee.models.transfer.attempt import Progress
from settee.models.transfer.trouble import failed, of_disk

#: Refusals that may mean that only Xet serves it.
LIBRARY_STATUS = frozenset((403, 404, 405, 406, 410, 415, 421, 426, 501))
_NEITHER = "its source's own library could not fetch it either"


@contextlib.contextmanager
def by_library(
    fetch: Callable[[Path], Path],
    target: Path,
    where: str,
    *,
    stop: threading.Event,
    deadline: float,
    on_progress: Progress,
) -> Iterator[Path]:
    """Have ``fetch`` bring the file into a folder of its own beside the target; the file is gone with the block.

    A library cannot be told to stop: at ``stop`` it is left alone, and cleans up when it is done. Raises Stopped,
    DownloadFailed, what ``fetch`` raises of ours, StagingError.
    """
    prefix = f".{target.name[:200]}.library-"
    try:
        for stale in target.parent.glob(f"{glob.escape(prefix)}*"):
            shutil.rmtree(stale, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise of_disk(error, target, None) from error

    def fetched() -> Path:
        try:
            found = fetch(folder)
        except SetteeError:
            raise
        except Exception as error:
            raise failed(where, _NEITHER) from error
        if not found.is_file():
            raise failed(where, _NEITHER)
        return found.resolve()

    def check() -> None:
        on_progress(_size(folder), None)
        if stop.is_set():
            raise Stopped
        if time.monotonic() > deadline:
            raise failed(where, "it took longer than MODELS_TIMEOUT_S")

    running = Call(fetched, name="settee-library")
    try:
        yield running.result(check=check)
    finally:
        running.when_ended(lambda: shutil.rmtree(folder, ignore_errors=True))


def _size(folder: Path) -> int:
    """Return the bytes of all files in the folder."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total
