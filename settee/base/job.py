"""A job and what becomes of it: the types that every door, the engine and its parts share.

All are frozen dataclasses, except :class:`settee.engine.request.JobRequest`, which parses a caller's payload.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from settee.base.errors import JobCanceled, JobTimeout

if TYPE_CHECKING:
    from settee.base.sealing import Sealer
    from settee.engine.request import JobRequest


class Status(str, Enum):
    """Where a job stands. The value is what doors show."""

    QUEUED = "queued"
    PREPARING = "preparing"
    MATERIALIZING = "materializing"
    SUBMITTED = "submitted"
    RUNNING = "running"
    UPLOADING = "uploading"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class Kind(str, Enum):
    """The kind of an output; also the key it is reported under."""

    IMAGE = "images"
    VIDEO = "videos"
    AUDIO = "audio"
    MODEL_3D = "models_3d"
    TEXT = "texts"
    FILE = "files"


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a door wants all files of a job: in a bucket at the worker's S3 endpoint, by names of the door's own."""

    bucket: str
    #: The key of a file, by its number (from 0) in the result.
    key: Callable[[int, Artifact], str]
    #: The metadata of the object, by artifact and hex sha256; text of any script.
    metadata: Callable[[Artifact, str], dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Wishes of one door beyond the request."""

    #: In place of the delivery that the request and the settings ask for.
    destination: Destination | None = None
    #: Full paths of the job's own models, as its door wrote them into the workflow; any other path is refused.
    own_paths: frozenset[str] = frozenset()
    #: True if its door takes files: all that the workflow loads must have come with the job then. Else it must exist in
    #: ComfyUI's input folder.
    takes_files: bool = True


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one request."""

    #: The platform's id. Shown and logged; never part of a path.
    id: str
    request: JobRequest
    #: Our own id for ComfyUI's queue (POST /prompt accepts one): a lost response stays findable.
    prompt_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    #: ``time.time()`` when the door made it.
    created_at: float = field(default_factory=time.time)
    #: The largest result the door can carry, in bytes of its body; None when it has no limit.
    max_result_bytes: int | None = None
    options: JobOptions = JobOptions()
    #: The keys of a request that came sealed: its result leaves sealed, and no file of it may exist anywhere in plain.
    sealer: Sealer | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One moment of a job. ``percent`` (0–100) is over the whole graph and never falls within a job."""

    job_id: str
    status: Status
    node_id: str | None = None
    node_type: str | None = None
    value: int | None = None
    maximum: int | None = None
    percent: float | None = None
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file (or text) that a node of this job left behind, before delivery."""

    node_id: str
    kind: Kind
    #: Plain file name as ComfyUI chose it.
    filename: str
    #: Subfolder as the caller would see it: this job's own prefix is taken off. "" for none.
    subfolder: str
    media_type: str
    #: Bytes.
    size: int
    #: Its place, when ComfyUI's folders are shared with the worker.
    path: Path | None = None
    #: The content itself, when there is no file (PreviewAny's text, SaveImageWebsocket's picture).
    content: bytes | None = None
    #: "output" or "temp".
    folder_type: str = "output"
    #: ComfyUI's own subfolder, this job's prefix included: what /view needs.
    comfy_subfolder: str = ""


@dataclass(frozen=True, kw_only=True)
class Output:
    """An artifact as it was delivered. Exactly one of ``data`` (base64 or text) and ``url`` is set."""

    filename: str
    subfolder: str
    kind: Kind
    node_id: str
    media_type: str
    #: Bytes of the file itself, not of its base64.
    size: int
    #: Hex, of the file itself.
    sha256: str
    #: "base64" | "s3_url" | "text" | "path" (a file on the network volume, named by ``url``)
    type: str
    data: str | None = None
    url: str | None = None
    #: Pixels; images only.
    width: int | None = None
    height: int | None = None
    #: ComfyUI's own subfolder, this job's prefix included, where it wrote the file.
    comfy_subfolder: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The end of a job that succeeded: Engine.run raises for failures."""

    outputs: tuple[Output, ...] = ()
    #: Milliseconds by phase: wipe, ready (waiting for ComfyUI), staging, execution, delivery, total.
    timings: dict[str, float] = field(default_factory=dict)
    #: Drawn for this job, by ``node.input``.
    seeds: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


OnProgress = Callable[[Progress], None]


class Cancel:
    """A cancel token that can be waited for together with a socket.

    ``set`` may be called from any thread, also from a signal handler's; ``fileno`` becomes readable then.
    Use it as a context manager: it owns a pipe.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self.reason = ""
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def set(self, reason: str = "canceled") -> None:
        """Ask the job to stop. Later calls change nothing."""
        with self._lock:
            if self._event.is_set() or self._write < 0:
                return
            self.reason = reason
            self._event.set()
            os.write(self._write, b"x")

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Sleep at most ``timeout_s`` seconds; return True as soon as the job is to stop."""
        return self._event.wait(timeout_s)

    def fileno(self) -> int:
        return self._read

    def close(self) -> None:
        with self._lock:
            if self._write >= 0:
                os.close(self._read)
                os.close(self._write)
                self._read = self._write = -1

    def __enter__(self) -> Cancel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The conditions that end a job early. ``deadline`` is in ``time.monotonic()``."""

    cancel: Cancel
    deadline: float

    def check(self) -> None:
        """Raise JobCanceled or JobTimeout when the job must not go on."""
        if self.cancel.is_set():
            raise JobCanceled(self.cancel.reason or None)
        if time.monotonic() >= self.deadline:
            raise JobTimeout
