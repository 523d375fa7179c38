"""A job's template, base model and LoRAs: what S3 has of them, their names here, and what is removed with the job.

A file's name is the one that people know it by: displayName, originalName, what the object says of itself, else its
key's last part. Two objects never share one: the second gets a hash of its bucket and key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from settee.backends.comfy.prompts import folder_of, prompt_ids
from settee.base import threads
from settee.base.errors import DownloadFailed, InvalidRequest, UnsafePath
from settee.base.settings import Settings
from settee.comfyui.model_folders import SUFFIXES
from settee.comfyui.workflow import Workflow
from settee.delivery.keys import safe_segment
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.envelope import Asset, Envelope
from settee.doors.agent.graph.parameters import PlacedModel
from settee.engine.engine import Engine
from settee.models.entry import ModelEntry, S3Object, identity
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.records import overwrite
from settee.models.required import names_of
from settee.models.sources.s3_object import sha256_of
from settee.s3.client import client_for
from settee.s3.error_table import S3Error, explained
from settee.s3.objects import head, read
from settee.s3.target import Target, workers_target
from settee.service.store import Attempt, Store, StoreError
from settee.staging.wipe import wipe_tree
from settee.staging.workspace import safe_relative

log = logging.getLogger(__name__)

#: A workflow is some 100 kB; what is larger is not one.
_MAX_BYTES = 20_000_000

Check = Callable[[], None]
T = TypeVar("T")


class Storage:
    """Every method asks S3, with the timeouts of :mod:`settee.s3.client`, and may be called from any thread.

    ``check`` is called while an answer is waited for, and what it raises ends the wait.
    """

    def __init__(self, settings: Settings) -> None:
        target = workers_target(settings)
        assert target is not None, "the agent's configuration always names its S3 store"
        self._target: Target = target

    def prepare(self) -> None:
        """Load botocore and its description of S3 before a job needs them: that holds all threads up for moments."""
        client_for(self._target)

    def head(self, bucket: str, key: str, what: str, check: Check) -> Mapping[str, Any]:
        """Return S3's answer to HEAD. Raises InvalidRequest when no such object exists, DownloadFailed when S3
        fails."""
        return self._ask(what, bucket, key, check, lambda target: head(target, key))

    def template(self, envelope: Envelope, workflows: Path, check: Check) -> Workflow:
        """Return the workflow that the envelope names. Raises InvalidRequest for anything else, DownloadFailed."""
        source = envelope.workflow
        if source.inline is not None:
            return source.inline
        if source.local_path is not None:
            return _parsed(_local(source.local_path, workflows), "workflow.localPath", "the file")
        bucket, key, what = envelope.workflow_bucket, source.minio_key or "", "workflow.minioKey"
        content = self._ask(what, bucket, key, check, lambda target: read(target, key, _MAX_BYTES + 1))
        return _parsed(content, what, f"s3://{bucket}/{key}")

    def _ask(self, what: str, bucket: str, key: str, check: Check, call: Callable[[Target], T]) -> T:
        """In a thread of its own: a server that is silent for minutes must not hold up a cancel for as long."""
        target = replace(self._target, bucket=bucket, by_month=False)
        try:
            with explained(target, reads=True):
                return threads.call(lambda: call(target), check=check, name="settee-s3")
        except S3Error as error:
            if error.status in (400, 404):
                raise _wrong(what, f"s3://{bucket}/{key} does not exist") from error
            raise DownloadFailed(f"{what}: {error.message}", retryable=error.retryable) from error


def _local(name: str, workflows: Path) -> bytes:
    """Return a file inside the workflows folder, links followed. Raises InvalidRequest."""
    root = os.path.realpath(workflows)
    path = Path(os.path.realpath(os.path.join(root, name)))
    if Path(root) not in path.parents:
        raise _wrong("workflow.localPath", "must name a file in the agent's workflows folder")
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _wrong("workflow.localPath", "names no file in the agent's workflows folder") from error


def _parsed(content: bytes, what: str, shown: str) -> Workflow:
    """Return the workflow in a file's first :data:`_MAX_BYTES` and one more. Raises InvalidRequest."""
    if len(content) > _MAX_BYTES:
        raise _wrong(what, f"{shown} is too large for a workflow")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _wrong(what, f"{shown} is not valid JSON") from error
    if not isinstance(data, dict):
        raise _wrong(what, f"{shown} holds no workflow: it must be an object of nodes")
    return data


def _wrong(path: str, problem: str) -> InvalidRequest:
    return InvalidRequest.from_problems([{"path": path, "problem": problem}])


# --- models ------------------------------------------------------------------------------------------------------


#: The names of an object in S3's metadata.
_METADATA_NAMES = ("original-name", "original_name", "display-name", "display_name")
_DEFAULT_NAME = "LoraModel.safetensors"
_HASH_LENGTH = 8


@dataclass(frozen=True)
class Assets:
    """The models of one job."""

    entries: tuple[ModelEntry, ...]
    #: The base model and the LoRAs, in the envelope's order.
    placed: tuple[PlacedModel, ...]
    #: Those to be removed after the job, which it brought.
    passing: tuple[ModelEntry, ...]


def resolve(
    envelope: Envelope,
    config: AgentConfig,
    storage: Storage,
    model_folder: ModelFolder,
    targets: tuple[str, str],
    check: Callable[[], None],
) -> Assets:
    """Ask S3 for each, and give each a name. ``targets``: folders of base models and LoRAs below the models folder.

    ``check`` is called between requests and while one is waited for. Raises InvalidRequest for an object that does not
    exist, DownloadFailed, and what ``check`` raises.
    """
    base_target, lora_target = targets
    cleanup = config.cleanup
    wanted = [("baseModel", base_target, envelope.base_model, cleanup.delete_downloaded_models)]
    for number, lora in enumerate(envelope.loras):
        wanted.append((f"loras[{number}]", lora_target, lora, cleanup.delete_downloaded_loras))
    taken: dict[str, Asset] = {}
    entries, passing = [], []
    for position, target, asset, is_removed in wanted:
        check()
        found = storage.head(asset.bucket, asset.key, position, check)
        stays = asset.cache_strategy == "persistent" or asset.key in config.persistent_model_keys
        entry = ModelEntry(
            source=S3Object(asset.bucket, asset.key, version=found.get("ETag", "").strip('"') or None),
            target=target,
            name="",
            sha256=asset.checksum or sha256_of(found),
            size=int(found["ContentLength"]),
            position=position,
            from_job=not stays,
        )
        entry = _named(entry, pretty_name(asset, found.get("Metadata") or {}), taken, asset, model_folder)
        entries.append(entry)
        if not stays and is_removed and not _is_kept(entry, model_folder):
            passing.append(entry)
    paths = [str(model_folder.path_of(entry)) for entry in entries]
    placed = tuple(map(PlacedModel, names_of(entries), paths))
    return Assets(tuple(dict.fromkeys(entries)), placed, tuple(dict.fromkeys(passing)))


def pretty_name(asset: Asset, metadata: Mapping[str, str]) -> str:
    """Return one path segment with the key's extension."""
    candidates = [asset.display_name, asset.original_name, *(metadata.get(name) for name in _METADATA_NAMES)]
    key = PurePosixPath(asset.key).name
    name = next((text.strip() for text in candidates if text and text.strip()), key)
    # A model's display name may be a path on its author's machine.
    name = name.replace("\\", "/").rstrip("/").rpartition("/")[2].strip(". ")
    if not name:
        return _DEFAULT_NAME
    suffix = _suffix(key) or _suffix(name) or _suffix(_DEFAULT_NAME)
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
    """Return the entry under its name, or that with a hash when another file has it: of this job, or in the folder."""
    digest = hashlib.sha256(f"{asset.bucket}/{asset.key}".encode()).hexdigest()[:_HASH_LENGTH]
    path = PurePosixPath(name)
    for candidate in (name, f"{path.stem}-{digest}{path.suffix}"):
        entry = replace(entry, name=candidate)
        other = taken.get(str(entry.path).casefold(), asset)
        if (other.bucket, other.key) == (asset.bucket, asset.key) and not _is_anothers(entry, model_folder):
            taken[str(entry.path).casefold()] = asset
            break
    # Where that name is taken as well, the engine names the owner.
    return entry


def _is_kept(entry: ModelEntry, model_folder: ModelFolder) -> bool:
    """Return True if it is there to stay. One that a job brought for itself, and could not remove, is not."""
    found = model_folder.inspect(entry)
    return found.state is FileState.RIGHT and not (found.placed is not None and found.placed.from_job)


def _is_anothers(entry: ModelEntry, model_folder: ModelFolder) -> bool:
    """Return True if another file is there that must stay; one that may be this very file does not count."""
    found = model_folder.inspect(entry)
    if found.state in (FileState.ABSENT, FileState.RIGHT):
        return False
    if found.placed is None or not found.is_ours:
        return entry.from_job or found.state is FileState.WRONG
    if found.placed.from_job:
        return False  # what an earlier job brought from elsewhere goes by itself; what is kept stays
    assert isinstance(entry.source, S3Object)
    of_any_version = identity(replace(entry.source, version=None))
    if not entry.from_job and of_any_version in (found.placed.source, found.placed.source.rpartition("#")[0]):
        return False  # the object has other bytes now, and so will the file that is kept of it
    return found.state is FileState.WRONG or found.placed.source != identity(entry.source)


# --- what a job leaves on this host ------------------------------------------------------------------------------


class Leftovers:
    """Used by one thread at a time; no method raises: at worst something stays, which is logged."""

    def __init__(self, store: Store, engine: Engine, outputs: Path) -> None:
        """``outputs``: the folder that ComfyUI writes to, for when the engine does not empty it."""
        self._store, self._engine = store, engine
        self._outputs = None if engine.output_dir else os.path.realpath(outputs)
        #: Models of earlier jobs that could not be removed.
        self._left: set[str] = set()
        #: What the store states.
        self._stored: set[str] = set()

    def note(self, passing: Sequence[ModelEntry]) -> None:
        """These models go with the job that runs."""
        self._write({str(entry.path) for entry in passing} | self._left)

    def done(self, prompt_id: str, passing: Sequence[ModelEntry], made: Iterable[str]) -> None:
        """The job has ended. Remove its models (those in use go at the next start), and its files below the outputs
        folder: ``made`` has those that custom nodes wrote where they like."""
        self._wipe(prompt_id, made)
        self._remove(str(entry.path) for entry in passing)

    def clear(self, interrupted: Sequence[Attempt]) -> None:
        """Take back the prompts of interrupted jobs, and remove what the killed agent would have removed.

        Before the first job.
        """
        try:
            self._stored = set(self._store.leftovers())
        except StoreError as error:
            log.warning("what a killed job left stays: %s", error.message)
        for attempt in interrupted:
            if attempt.prompt_id is not None:
                self._engine.backend.take_back(attempt.prompt_id)
                self._wipe(attempt.prompt_id)
        self._remove(self._stored)

    def _remove(self, models: Iterable[str]) -> None:
        for name in models:
            is_below = not name.startswith("/") and ".." not in name.split("/")
            if is_below and not self._engine.model_folder.records.discard(name):
                self._left.add(name)
        self._write(set(self._left))

    def _write(self, models: set[str]) -> None:
        if models == self._stored:
            return
        try:
            self._store.set_leftovers(models)
        except StoreError as error:
            log.warning("files that this job left could not be found after a kill: %s", error.message)
        else:
            self._stored = models

    def _wipe(self, prompt_id: str, made: Iterable[str] = ()) -> None:
        if self._outputs is None:
            return
        for each in prompt_ids(prompt_id):
            own = Path(self._outputs, folder_of(each))
            try:
                if own.is_dir() and not own.is_symlink():
                    wipe_tree(own)
                    own.rmdir()
            except OSError as error:
                log.warning("files of a job stay in ComfyUI's output folder: %s", error.strerror)
        for name in made:
            path = os.path.realpath(os.path.join(self._outputs, name))
            if path.startswith(f"{self._outputs}/"):
                with contextlib.suppress(OSError):  # gone with the folder above, for one
                    overwrite(path)
