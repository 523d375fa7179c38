"""A job's base model and LoRAs: what they are called here, and which of them go when the job has ended.

A file's name is the one that people know it by: displayName, originalName, what the object says of itself, else its
key's last part. Two objects never share one: the second gets a hash of its bucket and key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from settee.base.errors import UnsafePath
from settee.comfyui.model_folders import SUFFIXES
from settee.delivery.keys import safe_segment
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.envelope import Asset, Envelope
from settee.doors.agent.graph.parameters import ModelNames
from settee.doors.agent.storage import Storage
from settee.models.entry import ModelEntry, S3Object, identity
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.records import Placed
from settee.staging.workspace import safe_relative

#: What an object may call itself, in S3's metadata.
_METADATA_NAMES = ("original-name", "original_name", "display-name", "display_name")
_DEFAULT_NAME = "LoraModel.safetensors"
_HASH_LENGTH = 8


@dataclass(frozen=True)
class Assets:
    """The models of one job."""

    entries: tuple[ModelEntry, ...]
    names: ModelNames
    #: Those to be removed after the job, which it brought.
    passing: tuple[ModelEntry, ...]


def resolve(
    envelope: Envelope,
    config: AgentConfig,
    storage: Storage,
    model_folder: ModelFolder,
    folders: Mapping[str, str],
    check: Callable[[], None],
) -> Assets:
    """Ask S3 what each is, and give each a name. ``folders``: ``base_models`` and ``loras`` below the models folder.

    ``check`` is called between requests and while one is waited for. Raises InvalidRequest for an object that is not
    there, DownloadFailed, and what ``check`` raises.
    """
    taken: dict[str, Asset] = {}
    wanted = [("baseModel", "base_models", envelope.base_model)]
    wanted += [(f"loras[{number}]", "loras", lora) for number, lora in enumerate(envelope.loras)]
    entries, passing = [], []
    for position, folder, asset in wanted:
        check()
        found = storage.head(asset.bucket, asset.key, position, check)
        stays = asset.cache_strategy == "persistent" or asset.key in config.persistent_model_keys
        entry = ModelEntry(
            source=S3Object(asset.bucket, asset.key, version=found.version),
            target=folders[folder],
            name="",
            sha256=asset.checksum or found.sha256,
            size=found.size,
            position=position,
            from_job=not stays,
        )
        entry = _named(entry, pretty_name(asset, found.metadata), taken, asset, model_folder)
        entries.append(entry)
        is_wanted_gone = (
            config.cleanup.delete_downloaded_models
            if folder == "base_models"
            else config.cleanup.delete_downloaded_loras
        )
        if not stays and is_wanted_gone and not _is_kept(entry, model_folder):
            passing.append(entry)
    names = ModelNames(
        base_model=entries[0].name,
        base_model_full_path=str(model_folder.path_of(entries[0])),
        loras=tuple(entry.name for entry in entries[1:]),
        lora_paths=tuple(str(model_folder.path_of(entry)) for entry in entries[1:]),
    )
    return Assets(tuple(dict.fromkeys(entries)), names, tuple(dict.fromkeys(passing)))


def pretty_name(asset: Asset, metadata: Mapping[str, str]) -> str:
    """One path segment with the key's extension."""
    candidates = [asset.display_name, asset.original_name, *(metadata.get(name) for name in _METADATA_NAMES)]
    key = PurePosixPath(asset.key).name
    name = next((text.strip() for text in candidates if text and text.strip()), key)
    # What people call a model may be a path of theirs.
    name = name.replace("\\", "/").rstrip("/").rpartition("/")[2].strip(". ")
    suffix = next((each for each in (_suffix(key), _suffix(name)) if each), _suffix(_DEFAULT_NAME))
    if not name:
        return _DEFAULT_NAME
    name = safe_segment(name if _suffix(name).lower() == suffix.lower() else name + suffix)
    try:
        return safe_relative(name).name
    except UnsafePath:  # the name that Windows gives to a device
        return f"_{name}"


def _suffix(name: str) -> str:
    """Return the suffix of a model's file, as ComfyUI knows them; a version's number ("v1.0") does not count."""
    suffix = PurePosixPath(name).suffix
    return suffix if suffix.lower() in SUFFIXES else ""


def _named(
    entry: ModelEntry, name: str, taken: dict[str, Asset], asset: Asset, model_folder: ModelFolder
) -> ModelEntry:
    """Under its name, or that with a hash when another file has it: of this job, or in the folder."""
    for candidate in (name, hashed(name, asset)):
        named = replace(entry, name=candidate)
        other = taken.get(f"{named.target}/{candidate}".casefold())
        if (other is None or (other.bucket, other.key) == (asset.bucket, asset.key)) and not _is_anothers(
            named, model_folder
        ):
            taken[f"{named.target}/{candidate}".casefold()] = asset
            return named
    # That name is taken as well: the engine names the owner.
    return named


def hashed(name: str, asset: Asset) -> str:
    """``style-1a2b3c4d.safetensors``."""
    digest = hashlib.sha256(f"{asset.bucket}/{asset.key}".encode()).hexdigest()[:_HASH_LENGTH]
    path = PurePosixPath(name)
    return f"{path.stem}-{digest}{path.suffix}"


def _is_kept(entry: ModelEntry, model_folder: ModelFolder) -> bool:
    """Return True if it is there to stay. One that a job brought for itself, and could not remove, is not."""
    look = model_folder.inspect(entry)
    return look.state is FileState.RIGHT and not (look.placed is not None and look.placed.from_job)


def _is_anothers(entry: ModelEntry, model_folder: ModelFolder) -> bool:
    """Return True if another file is there that must stay; one that may be this very file does not count."""
    look = model_folder.inspect(entry)
    if look.state in (FileState.ABSENT, FileState.RIGHT):
        return False
    if look.placed is None or not look.is_ours:
        return entry.from_job or look.state is FileState.WRONG
    if look.placed.from_job:
        return False  # what an earlier job brought from elsewhere goes by itself; what is kept stays
    if not entry.from_job and _is_of(look.placed, entry):
        return False  # the object has other bytes now, and so will the file that is kept of it
    return look.state is FileState.WRONG or look.placed.source != identity(entry.source)


def _is_of(placed: Placed, entry: ModelEntry) -> bool:
    """Return True if this was the entry's object when it was placed, whatever it held then."""
    assert isinstance(entry.source, S3Object)
    whichever = identity(replace(entry.source, version=None))
    return whichever in (placed.source, placed.source.rpartition("#")[0])


def remove(passing: Iterable[ModelEntry], model_folder: ModelFolder) -> list[ModelEntry]:
    """Remove what jobs brought for themselves, half downloaded or whole; those that stay, which is logged."""
    return [entry for entry in passing if not model_folder.discard(str(entry.path))]
