"""Input files as a request names them, staged into a workspace of a test's own."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from settee.base.errors import InvalidRequest, SetteeError
from settee.base.job import Cancel, Limits
from settee.base.settings import Settings
from settee.engine.request import Bucket, InputFile, JobRequest
from settee.staging.inputs import Staged, Staging
from settee.staging.workspace import Folders, Workspace


def png(side: int = 8) -> bytes:
    target = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(target, "PNG")
    return target.getvalue()


PNG = png()
PNG64 = base64.b64encode(PNG).decode()


def request(
    files: dict[str, str] | None = None, images: dict[str, str] | None = None, bucket: Bucket | None = None
) -> JobRequest:
    """Names and data, whatever they are, as a request has them."""
    return JobRequest.model_construct(
        files=[InputFile(name=name, data=data) for name, data in (files or {}).items()],
        images=[InputFile(name=name, data=data) for name, data in (images or {}).items()],
        bucket=bucket,
    )


class Stage:
    """`stage` with a workspace and settings of its own; names and data as pairs."""

    def __init__(self, workspace: Workspace, cancel: Cancel) -> None:
        self.workspace = workspace
        self.cancel = cancel
        self.settings: dict[str, Any] = {}
        self.seconds = 30.0
        self.done: list[tuple[int, int]] = []

    def __call__(self, files: dict[str, str] | None = None, images: dict[str, str] | None = None) -> dict[str, Staged]:
        staging = Staging(
            request(files, images),
            self.workspace,
            Settings(**self.settings),
            limits=Limits(cancel=self.cancel, deadline=time.monotonic() + self.seconds),
            notify=lambda done, total: self.done.append((done, total)),
        )
        return {file.name: file for file in staging.run()}

    def bytes_of(self, data: str, name: str = "file.bin") -> bytes:
        return self({name: data})[name].path.read_bytes()

    def refused(
        self, files: dict[str, str] | None = None, images: dict[str, str] | None = None, kind: type = InvalidRequest
    ) -> SetteeError:
        with pytest.raises(kind) as caught:
            self(files, images)
        return caught.value  # type: ignore[no-any-return]


@pytest.fixture
def put(tmp_path: Path) -> Iterator[Stage]:
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None))
    workspace.open()
    with Cancel() as cancel:
        yield Stage(workspace, cancel)
