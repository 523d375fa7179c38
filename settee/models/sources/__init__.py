"""Where the bytes of a model are.

`linked` looks on this host, `addresses` beyond it, in this order:

    host cache ─▶ volume ─▶ mirror ─▶ the entry's own source: Hub, S3 or URL

**The mirror** is asked for ``Target/LocalName`` in place of the Hub or a URL. Those names are the entry's, and a
job's entry may say anything: it would get whatever object of the operator's has that name. So a job's entry goes to
the mirror only when it brings the sha256 of what it wants, and gets only an object whose metadata has that very sha256;
of any other it learns nothing.

**A job's entries** are asked for with HF_TOKEN, and without an s3Config with the worker's S3 keys, as its input files
are: who may send jobs may use what the operator's accounts can read. ALLOW_JOB_MODELS=false forbids all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from settee.errors import IntegrityError, ModelMissing
from settee.models.address import Address
from settee.models.entry import HubFile, ModelEntry, S3Object
from settee.models.sources import host_cache, hub, volume, web
from settee.net.retry import Backoff, retried
from settee.settings import Settings

if TYPE_CHECKING:
    from settee.request import Bucket

#: All workers of an endpoint may have begun at the same moment.
TRIES, BACKOFF = 3, Backoff(2.0, 4.0)


@dataclass(frozen=True)
class Origin:
    """One place that may have a model. Nobody is asked before :meth:`ask`."""

    #: For progress and errors: "the mirror", "Hugging Face", "S3", a host's name.
    label: str
    #: One question, without a second try.
    once: Callable[[], Address]
    #: The mirror gets one: the source itself is next.
    tries: int = TRIES
    backoff: Backoff = BACKOFF

    def ask(self, stop: threading.Event | None = None) -> Address:
        """The file's address, asked for again after what may pass. ``stop`` ends the waiting.

        Raises ModelMissing (it is not there), DownloadFailed (``retryable``: not now), ConfigError, or IntegrityError
        when the source says that it has something else than the entry wants.
        """
        return retried(self.once, self.backoff, tries=self.tries, stop=stop)


def linked(entry: ModelEntry, settings: Settings) -> Path | None:
    """An existing whole file on this host to link to: in RunPod's host cache, else in an extra model folder.

    Sizes are compared, and a sha256 with the one that the host cache knows (:func:`settee.models.sources.host_cache.\
sha256_of`); no file is read. Nothing is raised: a cache or volume that is not there has nothing.
    """
    if entry.from_job and (held := volume.holder(entry.path, settings)) is not None:
        return held  # the job's is that very file, or has no place here: ComfyUI would find it in this one's stead
    if isinstance(entry.source, HubFile):
        found = host_cache.find(
            entry.source, settings.host_cache_dir, size=entry.size, sha256=entry.sha256, is_private=entry.from_job
        )
        if found is not None:
            return found
    if entry.from_job:
        # A volume knows files by their names alone, and a job's name may be anybody's.
        return None
    return volume.find(entry.path, map(Path, settings.models_extra_dirs), size=entry.size)


def addresses(entry: ModelEntry, settings: Settings, bucket: Bucket | None = None) -> Iterator[Origin]:
    """The places that may have a model, in the order in which they should be asked.

    ``bucket`` is the s3Config of the job that brought the entry; it is used for the job's own s3:// entries alone.
    """
    may_be_mirrored = not isinstance(entry.source, S3Object) and (entry.sha256 or not entry.from_job)
    if settings.models_mirror and may_be_mirrored:
        from settee.models.sources import s3

        ask = partial(s3.address, entry, s3.mirrored(entry, settings.models_mirror), settings)
        held = partial(_known_to_caller if entry.from_job else _held_to, entry, ask)
        yield Origin("the mirror", held, tries=1)
    yield _own(entry, settings, bucket if entry.from_job else None)


def _own(entry: ModelEntry, settings: Settings, bucket: Bucket | None) -> Origin:
    source = entry.source
    if isinstance(source, HubFile):
        ask = partial(hub.address, entry, source, settings)
        return Origin("Hugging Face", partial(_held_to, entry, ask))
    if isinstance(source, S3Object):
        # A warm start needs no S3, whose modules take 30 ms to import.
        from settee.models.sources import s3

        ask = partial(s3.address, entry, source, settings, bucket)
        return Origin("S3", partial(_held_to, entry, ask))
    host = urlsplit(source.where).hostname or source.where
    return Origin(host, partial(_held_to, entry, partial(web.address, entry, source, settings)))


def _known_to_caller(entry: ModelEntry, ask: Callable[[], Address]) -> Address:
    """The mirror's address for a job. Raises ModelMissing, with no word of what is there, unless the hash is right."""
    if ask().sha256 != entry.sha256:
        raise ModelMissing(f"{entry.path}: the mirror does not have it with this sha256")
    return _held_to(entry, ask)


def _held_to(entry: ModelEntry, ask: Callable[[], Address]) -> Address:
    """The address, with what the entry says of its file; that goes first. Raises IntegrityError when they differ."""
    found = ask()
    if entry.sha256 and found.sha256 and entry.sha256 != found.sha256:
        raise IntegrityError(
            f"{entry.path} should have the sha256 {entry.sha256}, but at {found.where} it is {found.sha256}",
            details={"expected_sha256": entry.sha256, "sha256": found.sha256},
        )
    if entry.size is not None and found.size is not None and entry.size != found.size:
        raise IntegrityError(
            f"{entry.path} should have {entry.size} bytes, but at {found.where} it has {found.size}",
            details={"expected_size": entry.size, "size": found.size},
        )
    return replace(
        found,
        sha256=entry.sha256 or found.sha256,
        size=found.size if entry.size is None else entry.size,
        renew=None if found.renew is None else partial(_held_to, entry, found.renew),
    )
