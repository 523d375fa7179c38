"""Files of ComfyUI's editor with what the editor exports for them, and the registries they need.

See tests/data/editor-pairs/README.md and tests/data/real-workflows/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from settee.client import convert
from settee.client.client_errors import UsageError
from settee.client.targets.comfy_api import well_described
from settee.comfyui.workflow import Workflow

DATA = Path(__file__).parents[1] / "data"
REAL = sorted(path.name.removesuffix(".ui.json") for path in (DATA / "real-workflows").glob("*.ui.json"))
PAIRS = sorted(path.stem for path in (DATA / "editor-pairs").glob("*.json"))
OBJECT_INFO: dict[str, Any] = json.loads((DATA / "object_info.json").read_text())
API_NODES: dict[str, Any] = json.loads((DATA / "editor-pairs" / "registry" / "api_nodes.json").read_text())


def real(name: str) -> dict[str, Any]:
    return dict(json.loads((DATA / "real-workflows" / f"{name}.ui.json").read_text()))


def exported(name: str) -> dict[str, Any]:
    return comparable(json.loads((DATA / "real-workflows" / f"{name}.api.json").read_text()))


def pair(name: str) -> dict[str, Any]:
    return dict(json.loads((DATA / "editor-pairs" / f"{name}.json").read_text()))


def comparable(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """Without titles and without the widgets that only the editor knows (tests/data/real-workflows/README.md)."""

    def is_known(class_type: str, name: str) -> bool:
        return name not in ("audioUI", "preview") and (class_type, name) not in (
            ("SaveGLB", "image"),
            ("Preview3D", "image"),
        )

    return {
        node_id: {
            "class_type": node["class_type"],
            "inputs": {name: value for name, value in node["inputs"].items() if is_known(node["class_type"], name)},
        }
        for node_id, node in workflow.items()
    }


def converted(
    editor: Mapping[str, Any], object_info: Mapping[str, Any], *, extensions: Iterable[str] | None = None
) -> Workflow:
    """The API format, by a registry as a server answers with it."""
    return convert.converted(editor, well_described(object_info), extensions=extensions)


def refusal(editor: Mapping[str, Any], object_info: Mapping[str, Any] = OBJECT_INFO) -> str:
    with pytest.raises(UsageError) as caught:
        converted(editor, object_info)
    message = caught.value.message
    assert message.startswith("the editor's file cannot be converted: ")
    assert message.endswith("; open it in ComfyUI, use Workflow > Export (API) and send that file")
    assert "\n" not in message
    return message


def graphs(editor: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(editor), *editor.get("definitions", {}).get("subgraphs", [])]
