"""Engines on a ComfyUI that can be made to fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.rig import Rig, files_below


@pytest.fixture(scope="module")
def _shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("rig")) as rig:
        yield rig


@pytest.fixture
def rig(_shared_rig: Rig) -> Iterator[Rig]:
    """A supervised embedded ComfyUI, shared by a module's tests; clean and healthy before and after each."""
    _shared_rig.engine.backend.wait_ready(20)
    yield _shared_rig
    _shared_rig.stop_runs()
    _shared_rig.engine.backend.wait_ready(20)
    _shared_rig.clear_faults()
    assert _shared_rig.is_idle()
    assert files_below(*_shared_rig.folders) == []


@pytest.fixture
def own_rig(tmp_path: Path) -> Iterator[Rig]:
    """One for this test alone."""
    with Rig(tmp_path, embedded=True) as rig:
        yield rig


@pytest.fixture
def comfy_pack(rig: Rig) -> None:
    """Skip what needs nodes of tests/support/comfy_pack on a ComfyUI at COMFY_URL that lacks them."""
    if rig.is_external and not requests.get(f"{rig.url}/object_info/Teller", timeout=5).json():
        pytest.skip("copy tests/support/comfy_pack into the custom_nodes of the ComfyUI at COMFY_URL")
