"""What many tests of the models folder begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from settee.models.placed import Shelf
from tests.support.models import DATA


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "models")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A whole model on a volume."""
    path = tmp_path / "volume" / "m.safetensors"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return path
