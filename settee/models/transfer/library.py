"""The way out where no plain HTTP serves a file: its source's own library fetches it, beside the target.

The Hub's Xet storage is asked by plain HTTP first, which its bridge serves; hf_hub_download is for what that refuses.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from settee.errors import SetteeError
from settee.models.transfer.attempt import Progress
from settee.models.transfer.trouble import Stopped, failed, of_disk

#: Refusals that may mean that only Xet serves it.
LIBRARY_STATUS = frozenset((403, 404, 405, 406, 410, 415, 421, 426, 501))
_TICK_S = 0.2


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
        for stale in target.parent.glob(f"{_literal(prefix)}*"):
            shutil.rmtree(stale, ignore_errors=True)
        call = _Call(fetch, Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent)))
    except OSError as error:
        raise of_disk(error, target, None) from error
    try:
        call.begin()
        while not call.done.wait(_TICK_S):
            on_progress(call.size(), None)
            if stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise failed(where, "it took longer than MODELS_TIMEOUT_S")
        yield call.result(where)
    finally:
        call.leave()


class _Call:
    def __init__(self, fetch: Callable[[Path], Path], folder: Path) -> None:
        self._fetch = fetch
        self._folder = folder
        self._lock = threading.Lock()
        self._left = False
        self._found: Path | None = None
        self._failure: Exception | None = None
        self.done = threading.Event()

    def begin(self) -> None:
        threading.Thread(target=self._run, name="settee-library", daemon=True).start()

    def result(self, where: str) -> Path:
        if isinstance(self._failure, SetteeError):
            raise self._failure
        if self._failure is not None or self._found is None or not self._found.is_file():
            raise failed(where, "its source's own library could not fetch it either") from self._failure
        return self._found.resolve()

    def size(self) -> int:
        """Bytes that lie in the folder."""
        total = 0
        for root, _, names in os.walk(self._folder):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(root, name)).st_size
        return total

    def leave(self) -> None:
        """Remove the folder, now or when the library is done with it."""
        with self._lock:
            self._left = True
            if not self.done.is_set():
                return
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        try:
            self._found = self._fetch(self._folder)
        except Exception as error:  # the library's own; the thread that waits says it in our words
            self._failure = error
        with self._lock:
            self.done.set()
            left = self._left
        if left:
            shutil.rmtree(self._folder, ignore_errors=True)


def _literal(text: str) -> str:
    """For a glob."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)
