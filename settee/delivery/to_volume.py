"""Results on the network volume: the last resort for what is over the platform's cap when there is no S3.

Files are in ``RESULT_VOLUME_DIR/<job id>/``, readable by the worker's user only, on disk before the job ends.
Only their owner removes them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from settee.base.errors import DeliveryError
from settee.base.files import sync_folder, write_whole
from settee.base.job import Job, Output
from settee.base.sealing import Sealer
from settee.delivery.blob import Digest
from settee.delivery.item import Item
from settee.delivery.keys import Namer

log = logging.getLogger(__name__)


def store(
    items: Sequence[Item],
    job: Job,
    folder: Path,
    *,
    sealer: Sealer | None,
    check: Callable[[], None],
    notify: Callable[[], None],
) -> list[Output]:
    """Write the items below ``folder``; with ``sealer``, sealed. Their Outputs have type "path".

    Raises DeliveryError; what was written is removed then.
    """
    namer = Namer("{job_id}", job)
    written: list[Path] = []
    outputs = []
    try:
        for item in items:
            check()
            outputs.append(_store(item, folder, namer, sealer, check, written))
            notify()
        for parent in (folder, folder.parent):
            sync_folder(parent)
    except BaseException as error:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        for parent in sorted({path.parent for path in written}, reverse=True):
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            # Not the error itself: it names the file.
            log.warning("job %s: the result volume failed: %s (errno %s)", job.id, type(error).__name__, error.errno)
            raise DeliveryError(
                f"the result cannot be written to the network volume ({error.strerror}): look at RESULT_VOLUME_DIR, "
                "its owner and its free space"
            ) from error
        raise
    return outputs


def _store(
    item: Item,
    folder: Path,
    namer: Namer,
    sealer: Sealer | None,
    check: Callable[[], None],
    written: list[Path],
) -> Output:
    with item.prepare() as prepared:
        name = f"{item.index:04d}.sealed" if sealer else prepared.filename
        path = folder / namer.key(item.artifact, name)
        folder.mkdir(parents=True, exist_ok=True)
        for parent in (*reversed(path.relative_to(folder).parents[:-1]),):
            (folder / parent).mkdir(mode=0o700, exist_ok=True)
        digest = Digest(check)
        chunks = digest.through(prepared.content.chunks())
        # Whole or not at all, and over what an earlier attempt at this job left.
        written.append(path)
        part = path.with_name(f".{path.name}.part")
        write_whole(path, sealer.seal_chunks(chunks) if sealer else chunks, part=part)
        return item.output(prepared, digest, "path", url=str(path))
