"""Where each file goes, decided from sizes before a byte is encoded, so that no result is lost to the platform's cap.

A door that posts more than its platform takes loses the whole result in silence: RunPod answers 400 and does not
ask again. So the size of the final JSON is added up here, generously, and what does not fit goes elsewhere, largest
file first: to S3, else to the network volume. When there is neither, the job fails and says what would help.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from settee.base.errors import OutputTooLarge
from settee.base.job import Job
from settee.base.json_io import dumps
from settee.base.sealing import sealed_size
from settee.base.text import megabytes
from settee.delivery.item import Item

if TYPE_CHECKING:
    from settee.delivery import Delivery

#: Bytes for what surrounds the files: status, timings, warnings, the envelope.
BODY = 8 * 1024
#: Bytes for a file's keys, numbers and hash.
ENTRY = 400
#: Bytes for a presigned URL with the longest prefix that ``keys`` permits, percent-encoded.
URL = 2200

#: Warnings in a result; the rest is only counted. RunPod's answer has each twice: under ``warnings`` and ``errors``.
MAX_WARNINGS = 50
#: Bytes for a warning's words about a file, beside the file's name.
WARNING = 250

#: Where an item goes: into the answer, into the bucket, on the network volume.
Place = Literal["inline", "s3", "volume"]


def text_size(text: str) -> int:
    """Return the bytes of a string in JSON."""
    return len(dumps(text))


def _entry(item: Item) -> int:
    artifact = item.artifact
    return ENTRY + sum(
        text_size(text) for text in (artifact.filename, artifact.subfolder, artifact.node_id, artifact.media_type)
    )


def _inline(item: Item, size: int) -> int:
    if item.is_text and item.artifact.content is not None:
        return _entry(item) + text_size(item.artifact.content.decode("utf-8", "replace"))
    return _entry(item) + 4 * -(-size // 3)


def _elsewhere(item: Item) -> int:
    # The key repeats the names percent-encoded, up to three bytes for one.
    return _entry(item) + URL + 3 * text_size(item.artifact.filename + item.artifact.subfolder)


def _warned(item: Item, *, measured: bool) -> int:
    """Return the bytes for the warnings about an item: those it has if it was ``measured``, else those it may get."""
    if measured:
        return sum(2 * (text_size(warning) + 2) for warning in item.warnings)
    wanted = item.delivery.wanted
    possible = item.is_converted + (wanted.strip_metadata and not item.is_text)
    return possible * 2 * (WARNING + text_size(item.artifact.filename))


def choose(items: Sequence[Item], delivery: Delivery) -> tuple[list[Place], list[str]]:
    """Return a place for each item, and warnings about those that go elsewhere than asked. Raises OutputTooLarge."""
    job, settings = delivery.job, delivery.settings
    if job.options.destination is not None:
        return ["s3"] * len(items), []
    to_s3 = delivery.target is not None and (delivery.wanted.mode or settings.delivery) != "base64"
    places: list[Place] = ["s3" if to_s3 and not item.is_text else "inline" for item in items]
    cap = job.max_result_bytes
    if cap is None:
        return places, []
    sizes: list[int] = []
    warned: list[int] = []
    total = BODY
    for item, place in zip(items, places, strict=True):
        delivery.check()  # measuring may be a conversion
        is_inline = place == "inline"
        sizes.append(item.measure(keep=max(0, cap - total)) if is_inline else max(0, item.artifact.size))
        total += _inline(item, sizes[-1]) if is_inline else _elsewhere(item)
        warned.append(_warned(item, measured=is_inline))
    total += sum(sorted(warned, reverse=True)[:MAX_WARNINGS])
    asked = _body(total, job)
    if asked <= cap:
        return places, []
    spill: Place | None = "s3" if delivery.target else "volume" if mounted(settings.result_volume_dir) else None
    inline = [index for index, place in enumerate(places) if place == "inline"]
    moved = 0
    for index in sorted(inline, key=lambda index: sizes[index], reverse=True):
        if spill is None or _body(total, job) <= cap:
            break
        total += _elsewhere(items[index]) - _inline(items[index], sizes[index])
        places[index] = spill
        items[index].forget()
        moved += 1
    if _body(total, job) > cap:
        raise _too_large(items, sizes, asked, cap, full=spill is not None)
    where = "to S3" if spill == "s3" else "to the network volume (url is a path there)"
    return places, [
        f"the result would have been {megabytes(asked)}, over the {megabytes(cap)} that fit into the answer: "
        f"{moved} of {len(items)} files went {where} instead"
    ]


def _body(total: int, job: Job) -> int:
    return sealed_size(total) + BODY if job.sealer else total


def _too_large(items: Sequence[Item], sizes: Sequence[int], size: int, cap: int, *, full: bool) -> OutputTooLarge:
    files = [
        {"filename": item.artifact.filename, "node_id": item.artifact.node_id, "size": length}
        for item, length in zip(items, sizes, strict=True)
    ]
    details: dict[str, Any] = {"result_bytes": size, "cap_bytes": cap, "files": files[:100], "file_count": len(files)}
    remedy = "even the names of its files do not fit: save fewer files"
    if not full:
        keys = ("BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY")
        details["settings"] = [*keys, "RESULT_VOLUME_DIR"]
        remedy = (
            f"set {keys[0]}, {keys[1]} and {keys[2]} to have large results uploaded to S3, or attach a network volume "
            '(RESULT_VOLUME_DIR), or ask for smaller files (delivery: {"image_format": "webp"})'
        )
    return OutputTooLarge(
        f"the result is {megabytes(size)}, but {megabytes(cap)} fit into the answer; {remedy}", details=details
    )


def mounted(folder: Path) -> bool:
    """Return True if the folder is on a writable volume of its own (below some mount point other than the root).

    RunPod mounts a network volume at /runpod-volume. Where none is attached, the folder can still be made: in the
    container's own file system, where a result would die with the worker.
    """
    existing = next(part for part in (folder, *folder.parents) if part.is_dir() or part == part.parent)
    if not os.access(existing, os.W_OK | os.X_OK):
        return False
    return any(os.path.ismount(part) for part in (existing, *existing.parents) if part != part.parent)
