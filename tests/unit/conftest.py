"""What the tests of several modules begin with: a models folder, a workspace, input files, a folder to wipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from settee.models.folder.model_folder import ModelFolder
from settee.staging.workspace import Folders, Workspace
from tests.support.models import DATA
from tests.support.staging import put  # noqa: F401
from tests.support.web import web  # noqa: F401
from tests.support.wiping import outside, root  # noqa: F401


@pytest.fixture
def models(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A whole model on a volume."""
    path = tmp_path / "volume" / "m.safetensors"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    folders = Folders(tmp_path / "ws" / "input", tmp_path / "ws" / "output", tmp_path / "ws" / "temp")
    workspace = Workspace(folders)
    workspace.open()
    return workspace
