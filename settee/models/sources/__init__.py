"""Where the bytes of a model are.

`linked` looks on this host, `addresses` beyond it, in this order:

    host cache ─▶ volume ─▶ mirror ─▶ the entry's own source: Hub, S3 or URL

**The mirror** is asked for ``Target/LocalName`` in place of the Hub or a URL. Those names are the entry's, and a
job's entry may have any name: it would get whatever object of the operator's has that name. So a job's entry goes to
the mirror only when it brings the sha256 of what it wants, and gets only an object whose metadata has that very sha256;
of any other it learns nothing.

**A job's entries** are asked for with HF_TOKEN, and without an s3Config with the worker's S3 keys, as its input files
are: who may send jobs may use what the operator's accounts can read. ALLOW_JOB_MODELS=false forbids all of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from settee.base.errors import ModelMissing
from settee.base.settings import Settings
from settee.comfyui.model_folders import namesakes
from settee.models.entry import HubFile, ModelEntry, S3Object, WebFile
from settee.models.sources import host_cache
from settee.models.sources.hugging_face import Hub
from settee.models.transfer.address import Address
from settee.net.retry import Backoff, retried

log = logging.getLogger(__name__)

#: All workers of an endpoint may have begun at the same moment.
TRIES, BACKOFF = 3, Backoff(2.0, 4.0)


# --- on this host --------------------------------------------------------------------------------------------


def linked(entry: ModelEntry, settings: Settings) -> Path | None:
    """Return a whole file on this host to link to: in RunPod's host cache, else in an extra model folder.

    Sizes are compared, and a sha256 with that of the host cache (:func:`settee.models.folder.place.blob_sha256`);
    no file is read. Nothing is raised: a cache or volume that does not exist has no files.
    """
    if entry.from_job and (held := volume_file(entry.path, settings)) is not None:
        return held  # the job's is that very file, or cannot be placed: ComfyUI would find it instead of this one
    if isinstance(entry.source, HubFile):
        found = host_cache.find(
            entry.source, settings.host_cache_dir, size=entry.size, sha256=entry.sha256, is_private=entry.from_job
        )
        if found is not None:
            return found
    if entry.from_job:
        # A volume has files by their names alone, and a job may use any name.
        return None
    return find_on_volume(entry.path, _volumes(settings), size=entry.size)


def find_on_volume(path: PurePosixPath, folders: Iterable[Path], *, size: int | None = None) -> Path | None:
    """Return the first ``<target>/<name>`` that is a file with content (of ``size``, when given), or None.

    ``folders`` (MODELS_EXTRA_DIRS) are laid out like ComfyUI's models folder, on a network volume say.
    """
    if path.is_absolute() or ".." in path.parts:
        return None
    for folder in folders:
        candidate = folder / path
        try:
            found = candidate.stat()
        except (OSError, ValueError):
            continue  # absent; or a mount that has gone away, which means the same
        if not stat.S_ISREG(found.st_mode):
            continue
        if found.st_size == 0 or (size is not None and found.st_size != size):
            wanted = "" if size is None else f" instead of {size}"
            log.warning("a model folder has %s, but with %d bytes%s: not used", path, found.st_size, wanted)
            continue
        return candidate
    return None


def volume_file(path: PurePosixPath, settings: Settings) -> Path | None:
    """Return the operator's file that ComfyUI finds on a volume under this name, whatever its size.

    What the models folder has too, through a link to a folder of the volume, may be a job's: its record decides.
    """

    def folder_of(file: Path) -> str:
        return os.path.realpath(file.parent)

    own = {folder_of(settings.models_folder / place) for place in namesakes(path)}
    places = (folder / place for folder in _volumes(settings) for place in namesakes(path))
    return next((found for found in places if os.path.isfile(found) and folder_of(found) not in own), None)


def _volumes(settings: Settings) -> Iterator[Path]:
    """Yield MODELS_EXTRA_DIRS, without the models folder itself."""
    for folder in map(Path, settings.models_extra_dirs):
        with contextlib.suppress(OSError):
            if os.path.samefile(folder, settings.models_folder):
                continue
        yield folder


# --- elsewhere -----------------------------------------------------------------------------------------------


class Origin(NamedTuple):
    """One place that may have a model."""

    #: For progress and errors: "the mirror", "Hugging Face", "S3", a host's name.
    label: str
    #: Returns the file's address, asked for again after failures that may pass; the event ``stop`` ends the waiting.
    #: Raises ModelMissing (it does not exist), DownloadFailed (``retryable``: not now), ConfigError, or IntegrityError
    #: when the source has another file than the entry wants.
    ask: Callable[..., Address]


def addresses(entry: ModelEntry, settings: Settings) -> Iterator[Origin]:
    """Yield the places that may have a model, in the order in which they should be asked."""
    source = entry.source
    ask: Callable[[], Address]
    if settings.models_mirror and not isinstance(source, S3Object) and (entry.sha256 or not entry.from_job):
        from settee.models.sources import s3_object

        ask = partial(s3_object.address, entry, s3_object.mirrored(entry, settings.models_mirror), settings)
        once = partial(_known_to_caller if entry.from_job else _held_to, entry, ask)
        yield Origin("the mirror", partial(retried, once, BACKOFF, tries=1))  # the source itself is next
    if isinstance(source, HubFile):
        label, ask = "Hugging Face", Hub(entry, source, settings).address
    elif isinstance(source, S3Object):
        # A warm start needs no S3, whose modules take 30 ms to import.
        from settee.models.sources import s3_object

        label = "S3"
        ask = partial(s3_object.address, entry, source, settings)
    else:
        label = urlsplit(source.where).hostname or source.where
        ask = partial(web_address, entry, source, settings)
    yield Origin(label, partial(retried, partial(_held_to, entry, ask), BACKOFF, tries=TRIES))


def web_address(entry: ModelEntry, file: WebFile, settings: Settings) -> Address:
    """Return the URL without its credentials, which become a header for its host alone.

    No request is sent: the download's first one finds out size and ETag. A job's URL is held to public hosts, as a
    job's input files are (RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS).
    """
    from settee.net.http import split_login  # urllib3, which a warm start does not need

    url, headers = split_login(file.url)
    if entry.token is not None:
        headers = {"Authorization": f"Bearer {entry.token.get_secret_value()}"}
    return Address(
        url=url,
        where=file.where,
        headers=headers,
        public_only=entry.from_job and not settings.runpod_allow_private_download_urls,
    )


def _known_to_caller(entry: ModelEntry, ask: Callable[[], Address]) -> Address:
    """Return the mirror's address for a job. Raises ModelMissing, without details, unless the hash is right."""
    if ask().sha256 != entry.sha256:
        raise ModelMissing(f"{entry.path}: the mirror does not have it with this sha256")
    return _held_to(entry, ask)


def _held_to(entry: ModelEntry, ask: Callable[[], Address]) -> Address:
    """Return the address with the entry's size and hash where given. Raises IntegrityError if they differ."""
    found = ask()
    renew = None if found.renew is None else partial(_held_to, entry, found.renew)
    return replace(found.held_to(entry.size, entry.sha256), renew=renew, private=entry.from_job)
