"""The published workflows of tests/data/real-workflows, as ComfyUI exports them to be sent."""

from __future__ import annotations

import json
from typing import Any

from tests.support.editor_files import DATA


def real(name: str) -> dict[str, Any]:
    return json.loads((DATA / "real-workflows" / f"{name}.api.json").read_text())
