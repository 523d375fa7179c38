"""A folder to wipe, on the disk and on the RAM disk, and a file for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from settee.staging.wipe import wipe_tree

PAGES = 64 * 1024  # what a pipe holds
WORD = b"secret!!"
SECRET = WORD * (3 * PAGES // len(WORD)) + b"tail"

FOLDERS = ["disk"] + (["/dev/shm"] if os.access("/dev/shm", os.W_OK) else [])


@pytest.fixture(params=FOLDERS)
def outside(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on the disk, and again on the RAM disk."""
    if request.param == "disk":
        yield tmp_path
        return
    folder = Path(request.param) / f"settee-test-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    yield folder
    wipe_tree(folder)
    folder.rmdir()


@pytest.fixture
def root(outside: Path) -> Path:
    """What is wiped, with room for a test's own files beside it."""
    folder = outside / "root"
    folder.mkdir()
    return folder


def put(path: Path, content: bytes = SECRET) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
