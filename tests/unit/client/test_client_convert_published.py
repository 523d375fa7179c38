"""The 56 published workflows as editor's files: converted to what the real frontend exported, or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from settee.client import convert
from settee.client.client_errors import UsageError
from settee.client.targets.comfy_api import well_described

DATA = Path(__file__).parents[2] / "data"
PUBLISHED = DATA / "real-workflows"
NAMES = sorted(path.name.removesuffix(".ui.json") for path in PUBLISHED.glob("*.ui.json"))
OBJECT_INFO: dict[str, Any] = json.loads((DATA / "object_info.json").read_text())
#: Widgets that only the frontend has: a server knows nothing of them.
OF_THE_FRONTEND = {(None, "audioUI"), (None, "preview"), ("SaveGLB", "image"), ("Preview3D", "image")}


def said(workflow: dict[str, Any]) -> dict[str, Any]:
    """What a server gets told."""
    return {
        node_id: {
            "class_type": node["class_type"],
            "inputs": {
                name: value
                for name, value in node["inputs"].items()
                if not {(None, name), (node["class_type"], name)} & OF_THE_FRONTEND
            },
        }
        for node_id, node in workflow.items()
    }


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PUBLISHED / name).read_text())
    return found


def unknown_nodes(editor: dict[str, Any]) -> set[str]:
    """Ids of nodes whose class the registry lacks: API nodes, and the editor's own."""
    graphs = [editor, *editor.get("definitions", {}).get("subgraphs", [])]
    boxes = {graph["id"] for graph in graphs[1:]}
    return {
        str(node["id"])
        for graph in graphs
        for node in graph["nodes"]
        if node["type"] not in OBJECT_INFO and node["type"] not in boxes
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_published_workflow_is_what_the_editor_exports_or_refused(name: str) -> None:
    editor, exported = load(f"{name}.ui.json"), load(f"{name}.api.json")
    assert convert.is_editor_format(editor)
    assert not convert.is_editor_format(exported)
    if all(node["class_type"] in OBJECT_INFO for node in exported.values()):
        assert said(convert.converted(editor, well_described(OBJECT_INFO))) == said(exported)
        return
    with pytest.raises(UsageError, match=re.escape("Export (API)")) as refusal:
        convert.converted(editor, well_described(OBJECT_INFO))
    assert any(node_id in refusal.value.message for node_id in unknown_nodes(editor)), refusal.value.message


def test_most_of_them_are_converted() -> None:
    """A converter that refused them all would pass the other test."""
    converted = []
    for name in NAMES:
        try:
            convert.converted(load(f"{name}.ui.json"), well_described(OBJECT_INFO))
        except UsageError:
            continue
        converted.append(name)
    of_known_classes = [
        name for name in NAMES if all(n["class_type"] in OBJECT_INFO for n in load(f"{name}.api.json").values())
    ]
    assert len(NAMES) == 56
    assert converted == of_known_classes
