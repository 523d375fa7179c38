"""Leftovers of a job whose agent was killed: a prompt in ComfyUI, its files, models that were to be removed.

The store has the attempt that ran, with its prompt id, and the models; this module removes them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from settee.backends.comfy.prompts import folder_of, prompt_ids
from settee.engine.engine import Engine
from settee.models.entry import ModelEntry
from settee.service.store import Attempt, Store, StoreError
from settee.staging.wipe import wipe_file, wipe_tree

log = logging.getLogger(__name__)


class Leftovers:
    """Used by one thread at a time; no method raises: at worst something stays, which is logged."""

    def __init__(self, store: Store, outputs: Path | None) -> None:
        """``outputs``: the folder that ComfyUI writes to, when the engine does not empty it."""
        self._store, self._outputs = store, outputs
        #: Models of earlier jobs that could not be removed.
        self._left: set[str] = set()
        #: What the store states.
        self._stored: set[str] = set()
        #: Files below ``outputs`` of the job that ran last.
        self._made: list[str] = []

    def note(self, passing: Sequence[ModelEntry]) -> None:
        """These models go with the job that runs."""
        self._write({str(entry.path) for entry in passing} | self._left)

    def _write(self, models: set[str]) -> None:
        if models == self._stored:
            return
        try:
            self._store.set_leftovers(models)
        except StoreError as error:
            log.warning("what this job leaves could not be found after a kill: %s", error.message)
        else:
            self._stored = models

    def made(self, names: Iterable[str]) -> None:
        """Files below the outputs folder that go with the job: custom nodes write them where they like."""
        self._made = list(names)

    def done(self, prompt_id: str, left: Sequence[ModelEntry] = ()) -> None:
        """The job has ended, and its models are gone but for these, which go at the next start."""
        self._wipe(prompt_id)
        self._left |= {str(entry.path) for entry in left}
        self._write(set(self._left))

    def clear(self, engine: Engine, interrupted: Sequence[Attempt]) -> None:
        """Take back the prompts of interrupted jobs, and remove what the killed agent would have removed.

        Before the first job.
        """
        try:
            self._stored = set(self._store.leftovers())
        except StoreError as error:
            log.warning("what a killed job left stays: %s", error.message)
        for attempt in interrupted:
            if attempt.prompt_id is not None:
                engine.backend.take_back(attempt.prompt_id)
                self._wipe(attempt.prompt_id)
        discard = engine.model_folder.discard
        self._left |= {name for name in self._stored if _is_plain(name) and not discard(name)}
        self._write(set(self._left))

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


def _is_plain(name: str) -> bool:
    """Return True for a path below the models folder."""
    return not name.startswith("/") and ".." not in name.split("/")


__all__ = ["Leftovers"]
