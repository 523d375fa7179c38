"""What a job brings, held against what the worker has: no job may take the name of one of its models.

By its name alone ComfyUI would find a job's file from then on, for every later job. So the name counts, and not the
place: a file in `unet` hides one in `diffusion_models`, and one in the models folder hides the network volume's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from settee.comfyui.workflow import Problem
from settee.errors import InvalidRequest
from settee.models.entry import ModelEntry, S3Object
from settee.models.names import name_of
from settee.models.sources import volume
from settee.request import Bucket
from settee.settings import Settings


def checked(
    own: Sequence[ModelEntry], entries: Iterable[ModelEntry], settings: Settings, bucket: Bucket | None
) -> list[ModelEntry]:
    """A job's entries, those that the worker has anyway as the worker's own. Raises InvalidRequest with all clashes."""
    configured: dict[str, ModelEntry] = {}
    for entry in entries:
        configured.setdefault(_key(entry), entry)
    kept: dict[str, ModelEntry] = {}
    problems: list[Problem] = []
    for entry in (_at(entry, bucket) for entry in own):
        theirs = configured.get(_key(entry))
        if problem := _clash(entry, theirs or kept.get(_key(entry)), settings):
            problems.append({"path": entry.position, "problem": problem})
        elif theirs is None:
            kept[_key(entry)] = entry
        else:
            # What the job knows of the file must hold for it, too.
            kept[_key(entry)] = replace(theirs, sha256=theirs.sha256 or entry.sha256, size=theirs.size or entry.size)
    if problems:
        raise InvalidRequest.from_problems(problems)
    return list(kept.values())


def _key(entry: ModelEntry) -> str:
    """Some volumes do not tell case apart."""
    return name_of(entry.path).lower()


def _clash(entry: ModelEntry, other: ModelEntry | None, settings: Settings) -> str | None:
    if other is not None:
        if other.source != entry.source or (entry.sha256 and other.sha256 and entry.sha256 != other.sha256):
            return f"{entry.path} is another model on this worker: give yours another LocalName"
        return None
    if entry.sha256 is None and volume.holder(entry.path, settings) is not None:
        return (
            f"{entry.path} is a model on this worker's volume: leave yours out to use that one, give its sha256 "
            "if it is the same, or give yours another LocalName"
        )
    return None


def _at(entry: ModelEntry, bucket: Bucket | None) -> ModelEntry:
    """The entry with the endpoint that its job's s3Config names: equal keys at two endpoints are two files."""
    if bucket is None or not isinstance(entry.source, S3Object):
        return entry
    return replace(entry, source=replace(entry.source, endpoint=bucket.endpoint_url))


__all__ = ["checked"]
