"""What a job of an agent that was killed left behind: a prompt in ComfyUI, files of it, models that were to go.

While a job runs, ``leavings.json`` in the state folder says what that would be.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from settee.backends.comfy.prompts import folder_of, prompt_ids
from settee.base.errors import SetteeError
from settee.base.files import write_whole
from settee.engine import Engine
from settee.models.entry import ModelEntry
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.removal import remove_part
from settee.wipe import wipe_file, wipe_tree

log = logging.getLogger(__name__)

_PROMPT_ID = re.compile(r"[0-9a-f-]{36}")


class Leavings:
    """Used by one thread at a time; no method raises: at worst something stays, which is logged."""

    def __init__(self, folder: Path, outputs: Path | None) -> None:
        """``outputs``: the folder that ComfyUI writes to, when nobody else empties it."""
        self._path = folder / "leavings.json"
        self._outputs = outputs
        #: Models of earlier jobs that could not be removed.
        self._left: set[str] = set()
        #: Files below ``outputs`` of the job that ran last.
        self._made: list[str] = []

    def note(self, prompt_id: str, passing: Sequence[ModelEntry] = ()) -> None:
        """A job runs as this prompt; these models go with it."""
        self._write(prompt_id, {str(entry.path) for entry in passing} | self._left)

    def _write(self, prompt_id: str, models: set[str]) -> None:
        try:
            write_whole(self._path, json.dumps({"prompt_id": prompt_id, "models": sorted(models)}).encode())
        except OSError as error:
            log.warning("what this job leaves could not be found after a kill (%s)", error.strerror)

    def made(self, names: Iterable[str]) -> None:
        """Files below the outputs folder that go with the job: custom nodes write them where they like."""
        self._made = list(names)

    def done(self, prompt_id: str, left: Sequence[ModelEntry] = ()) -> None:
        """The job has ended, and its models are gone but for these, which go at the next start."""
        self._wipe(prompt_id)
        self._left |= {str(entry.path) for entry in left}
        if self._left:
            self._write(prompt_id, self._left)
            return
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def clear(self, engine: Engine) -> None:
        """Before the first job: take back the prompt, and remove what the killed agent would have removed."""
        try:
            data = json.loads(self._path.read_bytes())
            prompt_id, models = data["prompt_id"], data["models"]
            if not _PROMPT_ID.fullmatch(prompt_id):
                raise ValueError("no id")
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            log.warning("leavings.json in the state folder cannot be read: what a killed job left stays")
            return
        engine.take_back(prompt_id)
        self._left |= _remove(models, engine.shelf)
        self.done(prompt_id)

    def _wipe(self, prompt_id: str) -> None:
        if self._outputs is None:
            return
        for each in prompt_ids(prompt_id):
            own = self._outputs / folder_of(each)
            try:
                if own.is_dir() and not own.is_symlink():
                    wipe_tree(own)
                    own.rmdir()
            except OSError as error:
                log.warning("files of a job stay in ComfyUI's output folder: %s", error.strerror)
        root, made, self._made = os.path.realpath(self._outputs), self._made, []
        for name in made:
            folder, file = os.path.split(os.path.realpath(os.path.join(root, name)))
            if f"{folder}/".startswith(f"{root}/"):
                with contextlib.suppress(OSError):  # gone with the folder above, for one
                    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                    try:
                        wipe_file(file, dir_fd=folder_fd)
                    finally:
                        os.close(folder_fd)


def _remove(models: object, shelf: ModelFolder) -> set[str]:
    """Of these, by their paths, what the records say that a job brought, and what was half fetched; those that stay."""
    wanted = {name for name in models if _is_plain(name)} if isinstance(models, list) else set()
    left = set()
    try:
        brought = {placed.path: placed for placed in shelf.records() if placed.from_job}
    except OSError as error:
        log.warning("models of a killed job stay: %s", error.strerror)
        return wanted
    for name in wanted:
        try:
            is_gone = name not in brought or shelf.remove(brought[name]) is not None
            if not (remove_part(f"{shelf.root}/{name}") and is_gone):
                log.warning("a model of a killed job stays: it is in use, or still fetched")
                left.add(name)
        except (OSError, SetteeError) as error:
            log.warning("a model of a killed job stays: %s", getattr(error, "strerror", None) or error)
            left.add(name)
    return left


def _is_plain(name: object) -> bool:
    """Whether it is a path below the models folder."""
    return isinstance(name, str) and not name.startswith("/") and ".." not in name.split("/")


__all__ = ["Leavings"]
